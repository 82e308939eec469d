"""The settings of a regression-aware run."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig
from trl.trainer.utils import get_config_model_id

from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.forward.cpu_precision import cpu_multiplies_bf16, warn_where_bf16_is_emulated
from raft_peft.grid import NumberGrid
from raft_peft.losses import ExpectedSquaredError
from raft_peft.messages import warn
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.distribution_losses import resolve_distribution_weight
from raft_peft.methods.preference_losses import check_preference_settings
from raft_peft.training.speed.checkpointing import checkpointing_asked_for, set_checkpointing

logger = logging.getLogger(__name__)

_LOWER_IS_BETTER = ("rmse", "mae", "loss", "crps", "nll", "calibration_error", "rater_distance", "kl", "brier", "ece")

# Each of these settings of SFTConfig speaks of tokens, or of a loss over them. Beside its name stand the value that
# can be honoured, and what to do instead of another.
_UNSUPPORTED = {
    "packing": (
        False,
        "A packed row has one final position for many prompts. Leave packing off; `padding_free=True` lays the rows "
        "of a batch end to end.",
    ),
    "eval_packing": (None, "Every prompt is scored at its own final position. Leave eval_packing unset."),
    "completion_only_loss": (None, "The loss is on the number alone, never on tokens. Leave it unset."),
    "assistant_only_loss": (False, "The loss is on the number alone, never on tokens. Leave it off."),
    "loss_type": ("nll", "The loss is the squared error of the expected number. Leave loss_type at its default."),
    "label_smoothing_factor": (0.0, "It smooths a token cross-entropy, which is not used here. Set it to 0."),
    "dataset_text_field": ("text", "Rows are `prompt` and a label. Rename the column of the text to `prompt`."),
    "dataset_kwargs": (None, "Rows with `input_ids` and a label count as tokenized. Leave it unset."),
    "label_names": (None, "Set `label_column` to the name of the column that holds the label."),
    "average_tokens_across_devices": (True, "The loss is a mean over the examples of all devices. Leave it on."),
    "batch_eval_metrics": (False, "Correlations need all predictions, and numbers take little memory. Leave it off."),
    "eval_do_concat_batches": (True, "Metrics are computed over all rows at once. Leave it on."),
    "prediction_loss_only": (False, "Metrics need predictions, one number a row. Leave it off."),
}


@dataclass
class RegressionAwareConfig(MethodSettings, SFTConfig):
    """Settings of [`RegressionAwareTrainer`]: those of TRL's `SFTConfig`, and these.

    Parameters:
        label_column: name of the dataset column that holds the target number. A numeric `completion` is read in
            its place where the column is missing.
        weight_by_ratings: whether a row whose label is a list of ratings counts as often in the loss as it has raters,
            so that each rater counts the same. By default each row counts the same. Metrics count rows.
        prompt_template: writes the prompts from the other columns of a row, in braces, as in "Review: {text} Stars:";
            or a list of chat messages of such texts. By default a prompt is the column `prompt`. It is saved, and rows
            are predicted by it. Of rows with typed questions it writes the `state` where they have none, in training
            and on the command line.
        chat: whether the template, or the column `prompt`, becomes the message of a user.
        system: a system message before it, which may name columns, too; with it there is a chat.
        question_template: how typed questions are written, see [`QuestionTemplate`]: vllm (the default), sglang, or a
            dict. It is saved, and questions are asked by it.
        question_weights: what each typed question counts in the mean of the loss, by its id, `{"tone": 2}`; by
            default 1.
        preference_beta, preference_weight: of rows of `chosen` and `rejected`: the log-odds for a difference of 1 in
            the unit of the labels, and what they count in the mean of the loss beside rows with a label. None: both
            are 1 on the grid 1 to 5, and as much on any other scale; the trainer sets what it used.
        separator: text between the prompt and the number. None puts one space after a plain prompt that does not
            end in white space, and nothing after a chat template's generation prompt.
        score_prefix: the words between a row's `reasoning` and its number, by default "\\n[RESULT] ". They are saved,
            and stand before the number of a row without reasoning, too.
        reasoning_weight: what the cross-entropy of the reasonings, a mean over their tokens, counts beside the loss.
        reasonings: all (the default): each reasoning of a row is an example; or one, another in each epoch.
        non_finite_loss: stop (the default), which saves the weights of the step before and names the rows, or skip,
            which leaves the step out and goes on.
        log_predictions: so many rows of each evaluation, the first, are sent to `report_to` (TensorBoard, W&B,
            trackio) as a table, with their distribution over the grid; 0 for none.
        init: pretrained, or random, where the model that the trainer is given by name starts from random weights.
        method, decision, renormalize, attention, number_end, end_every_number, constrained, num_samples, weights,
            special_token, mlp_width, pooling, distribution_loss, distribution_weight, label_smoothing: see
            [`MethodSettings`].

    These defaults differ from `SFTConfig`:
        - `learning_rate`: 2e-4, for LoRA, instead of 2e-5.
        - `lr_scheduler_type`: cosine instead of linear, after `warmup_steps` of a tenth of the run.
        - `truncation_mode`: keep_end, the one mode that keeps the place where the number begins.
        - `bf16`: where unset, on for an accelerator that can do it, and on a CPU that multiplies in bf16 (AMX or
          AVX512-BF16), where a model given by name also gets eager attention unless it is told otherwise: the fastest
          there by `benchmarks/cpu_precision.py`.
        - `gradient_checkpointing`: where unset, chosen when the trainer is created: off if a step fits into the free
          memory without it (`docs/speed_and_memory.md`).
        - `padding_free`: where unset, on on a CPU if the method and the model can use it.
        - `greater_is_better`: follows `metric_for_best_model`; False for rmse, mae, loss, crps, nll,
          calibration_error and rater_distance.

    Raises:
        ValueError: a setting of `SFTConfig` that cannot be honoured, with the reason and what to use instead.
    """

    learning_rate: float = field(default=2e-4, metadata={"help": "The initial learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate schedule."})
    warmup_steps: float = field(
        default=0.1,
        metadata={"help": "Warm-up of the learning rate: a number of steps, or a share of all steps if below 1."},
    )
    truncation_mode: str = field(
        default="keep_end",
        metadata={
            "help": "How a prompt longer than `max_length` is cut. `keep_end` drops its beginning, since the number "
            "follows its end.",
            "choices": ["keep_end"],
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Whether layers are computed again in the backward pass. This saves memory and takes time. By "
            "default only if a step would not fit into memory otherwise."
        },
    )
    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the rows of a batch are put end to end, without padding, and their common beginning is "
            "computed once. By default on a CPU, if the method and the model can."
        },
    )
    label_column: str = field(
        default="label",
        metadata={"help": "Name of the dataset column that holds the target number."},
    )
    weight_by_ratings: bool = field(
        default=False,
        metadata={
            "help": "Whether a row with a list of ratings as its label counts once for each rater in the loss. By "
            "default each row counts the same."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "The text of the prompt, with the names of columns in braces: 'Review: {text} Stars:'. Or a JSON "
            "list of chat messages with such texts. By default the column `prompt`. It is saved with the model."
        },
    )
    chat: bool = field(
        default=False,
        metadata={"help": "Send the prompt as the message of a user, through the chat template."},
    )
    system: str | None = field(
        default=None,
        metadata={"help": "A system message before the prompt. It may also name columns in braces."},
    )
    question_template: dict | str | None = field(
        default=None,
        metadata={
            "help": "How typed questions are written: vllm (the default) or sglang, in the words of these servers. In "
            "Python also a dict, see QuestionTemplate."
        },
    )
    question_weights: dict | str | None = field(
        default=None,
        metadata={
            "help": "What a typed question counts in the loss, by its id, as JSON: '{\"tone\": 2}'. By default 1."
        },
    )
    preference_beta: float | None = field(
        default=None,
        metadata={
            "help": "Of rows with `chosen` and `rejected`: the log-odds of the preference for a difference of 1 in "
            "the unit of the labels. By default 1 on the grid 1 to 5, and as much on any other scale."
        },
    )
    preference_weight: float | None = field(
        default=None,
        metadata={
            "help": "What a row with `chosen` and `rejected` counts in the loss beside a row with a label. By default "
            "1 on the grid 1 to 5, and as much on any other scale."
        },
    )
    separator: str | None = field(
        default=None,
        metadata={
            "help": "Text between the prompt and the number. By default one space after a plain prompt that does not "
            "end in white space, and nothing after a chat template's generation prompt."
        },
    )
    score_prefix: str | None = field(
        default=None,
        metadata={"help": "Words between a `reasoning` and its number, by default '\\n[RESULT] ' if rows have one."},
    )
    reasoning_weight: float = field(
        default=1.0,
        metadata={"help": "What the cross-entropy of the reasonings, a mean over tokens, counts beside the loss."},
    )
    reasonings: str = field(
        default="all",
        metadata={
            "help": "all: every reasoning of a row is an example. one: another of them in each epoch.",
            "choices": ["all", "one"],
        },
    )
    non_finite_loss: str = field(
        default="stop",
        metadata={
            "help": "What happens if a loss or its gradient is not a finite number. stop: the weights before this "
            "step are saved, and training ends. skip: the step is left out, and training continues.",
            "choices": ["stop", "skip"],
        },
    )
    log_predictions: int = field(
        default=4,
        metadata={
            "help": "Number of rows of each evaluation, the first ones, that are sent to `report_to` as a table with "
            "their distribution over the grid. 0 for none."
        },
    )
    init: str = field(
        default="pretrained",
        metadata={
            "help": "pretrained, or random: the model has the architecture of the one that is named, and starts from "
            "random weights.",
            "choices": ["pretrained", "random"],
        },
    )

    # `Trainer` pickles the arguments beside a model, and one call of it, `_push_from_checkpoint`, goes on to upload
    # the folder with their `hub_token`. With `hub_token=None` in the meantime the file would hold no token, but the
    # upload would have none either. So the arguments keep their tokens, and only their pickle leaves them out.
    _pickles_tokens = True

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if not state.pop("_pickles_tokens", True):
            state["hub_token"] = None
            state["model_init_kwargs"] = self.model_init_kwargs and {**self.model_init_kwargs, "token": None}
        return state

    def pickled_without_tokens(self) -> AbstractContextManager[None]:
        """For the time of a `with` block, these settings are pickled without the tokens that open the Hub."""
        return temporarily(self, _pickles_tokens=False)

    def __post_init__(self) -> None:
        if self.log_predictions < 0:
            raise ValueError(f"`log_predictions={self.log_predictions}` must be 0 or more.")
        for name, (supported, cure) in _UNSUPPORTED.items():
            value = getattr(self, name)
            if value != supported and not (supported in (None, False) and value in (None, False)):
                raise ValueError(f"`{name}={value!r}` cannot be used with a regression loss. {cure}")
        self.check_method()
        check_preference_settings(self)
        self.prompts_template()
        if self.padding_free and METHODS[self.method].trains_text:
            raise ValueError(
                f"`padding_free=True` is for rows that end in their number, and method {self.method!r} trains on the "
                "target's text after them. Leave it off; `train_sampling_strategy='group_by_length'` saves padding."
            )
        if not 0 <= self.reasoning_weight < float("inf"):
            raise ValueError(f"`reasoning_weight={self.reasoning_weight}` must be a number of 0 or more.")
        for name in ("init", "non_finite_loss", "reasonings"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` does not exist. Use {' or '.join(map(repr, choices))}."
                )
        if self.truncation_mode != "keep_end":
            raise ValueError(
                f"`truncation_mode={self.truncation_mode!r}` would cut off the end of the prompt, where the number "
                "begins. Use 'keep_end'."
            )
        if self.metric_for_best_model is not None and self.greater_is_better is None:  # type: ignore[has-type]
            self.greater_is_better = not self.metric_for_best_model.endswith(_LOWER_IS_BETTER)
        if self.bf16 is None:  # type: ignore[has-type]
            on_cpu = self.use_cpu or not torch.accelerator.is_available()  # type: ignore[has-type]
            self.bf16 = not self.fp16 and (cpu_multiplies_bf16() if on_cpu else is_torch_bf16_gpu_available())
        if (self.bf16 or self.bf16_full_eval) and not torch.accelerator.is_available():
            # transformers demands a GPU for bf16 unless the CPU is asked for by name.
            self.use_cpu = True
        if (self.bf16 or self.bf16_full_eval) and self.use_cpu:
            warn_where_bf16_is_emulated("Leave `bf16` and `bf16_full_eval` unset.")
        checkpointing = checkpointing_asked_for(self)
        with warnings.catch_warnings():
            # TRL deprecates `keep_end` for its token losses, while this trainer cuts prompts itself; and transformers
            # deprecates the name under which TRL turns on activation checkpointing.
            for name in ("keep_end", "gradient_checkpointing"):
                warnings.filterwarnings("ignore", message=f".*{name}.* is deprecated", category=FutureWarning)
            super().__post_init__()
        # `TrainingArguments` has set to False what was None.
        set_checkpointing(self, checkpointing)
        if not torch.accelerator.is_available():
            # Without an accelerator nothing is pinned, and torch would warn of it at each data loader.
            self.dataloader_pin_memory = False

    def prompts_template(self) -> PromptTemplate | None:
        """What writes the prompts of rows; None where they come as they are.

        Raises:
            ValueError: `prompt_template`, `chat` and `system` do not go together, or are no template.
        """
        return PromptTemplate.of(self.prompt_template, chat=self.chat, system=self.system)

    @classmethod
    def of(cls, args: TrainingArguments | None, model: Any) -> RegressionAwareConfig:
        """The settings that a trainer was given, converted where they are of another class, or the defaults.

        It is a copy, since a trainer writes to its settings, and one object may serve several trainers.
        """
        if isinstance(args, RegressionAwareConfig):
            copied = copy.copy(args)
            for name, value in vars(args).items():
                if isinstance(value, dict | list | AcceleratorConfig):
                    setattr(copied, name, copy.copy(value))
            return copied
        if args is not None:
            return cls.from_training_arguments(args)
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return cls(f"{name.rstrip('/').split('/')[-1]}-RAFT")

    @classmethod
    def from_training_arguments(cls, args: TrainingArguments) -> RegressionAwareConfig:
        """The settings of a run that was configured for `Trainer` or `SFTTrainer`, as far as they can be honoured."""
        accepted = {setting.name for setting in fields(cls) if setting.init}
        settings: dict[str, Any] = {
            setting.name: getattr(args, setting.name) for setting in fields(args) if setting.name in accepted
        }
        metric = settings.get("metric_for_best_model")
        if metric is not None and metric.endswith(_LOWER_IS_BETTER):
            # transformers sets it to True for every metric whose name does not end in "loss".
            del settings["greater_is_better"]
        # SFTConfig's default is meant for completions, and nobody chose it for prompts that end in a number.
        if settings.get("truncation_mode") == "keep_start":
            del settings["truncation_mode"]
        return cls(**settings)


def refuse_token_callables(compute_loss_func: Any, preprocess_logits_for_metrics: Any, formatting_func: Any) -> None:
    """Raise a ValueError for arguments of `SFTTrainer` that work on token logits or texts to complete."""
    reasons = {
        "compute_loss_func": (
            compute_loss_func,
            "It is for token logits and labels, which do not exist here. Subclass RegressionAwareTrainer and "
            "override compute_loss.",
        ),
        "preprocess_logits_for_metrics": (
            preprocess_logits_for_metrics,
            "No logits are kept, only numbers. compute_metrics gets predictions and labels as they are.",
        ),
        "formatting_func": (
            formatting_func,
            "It makes texts to complete. Make a `prompt` column: dataset.map(lambda row: {'prompt': ...}).",
        ),
    }
    for name, (value, cure) in reasons.items():
        if value is not None:
            raise ValueError(f"`{name}` cannot be used with a regression loss. {cure}")


def loss_to_train_on(args: RegressionAwareConfig, loss: Any, grid: NumberGrid) -> Any:
    """The user's loss, or the method's own; None where it has none, or one over the target's text.

    Where a `distribution_loss` is set, its weight is set in `args`, too.

    Raises:
        ValueError: a loss of the prediction is given to a method that trains on text, or beside a `distribution_loss`.
    """
    method = METHODS[args.method]
    if loss is not None and args.distribution_loss is not None:
        raise ValueError(
            f"`loss` takes the place of the method's own, and `distribution_loss={args.distribution_loss!r}` adds to "
            "that. Pass the sum, `loss=LossSum([(your_loss, 1.0), (CRPS(), 1.0)])`, or leave one out."
        )
    resolve_distribution_weight(args, grid.values)
    if loss is not None and method.trains_text:
        raise ValueError(f"`loss` cannot be used with method {args.method!r}, whose loss is over the target's text.")
    if loss is None and method.loss is not None:
        loss = method.loss(args)
    if isinstance(loss, ExpectedSquaredError) and not loss.renormalize:
        warn(
            logger,
            "What is off the grid costs nothing in the loss of method 'mbr' over the whole vocabulary: it falls to 0 "
            "where the model answers with no number of the grid at all, whatever the target. Set `renormalize=True`; "
            "or `num_samples`, with which everything off the grid counts as 0.",
        )
    return loss


def refuse_training_on_nothing(train_dataset: Any, loss: Any, method: str) -> None:
    """Raise a ValueError where there are no rows to train on, or there is no loss."""
    if train_dataset is None:
        raise ValueError(
            "There is nothing to train on. Pass `train_dataset` to RegressionAwareTrainer: rows of `prompt` and a "
            "float `label`. Without it, `evaluate(dataset)` and `predict(dataset)` work zero-shot."
        )
    if loss is None and not METHODS[method].trains_text:
        raise ValueError(
            f"Method {method!r} predicts zero-shot and has no loss to train on. Set `method` to raft or another that "
            "trains, or pass `loss`."
        )


def refuse_offloading_without_accelerator(args: Any) -> None:
    """Raise a ValueError where activations would be moved to the memory in which they already are."""
    settings = {
        "activation_offloading=True": args.activation_offloading,
        "gradient_checkpointing_kwargs={'offload': True}": (args.gradient_checkpointing_kwargs or {}).get("offload"),
    }
    for setting, is_set in settings.items():
        if is_set and not torch.accelerator.is_available():
            raise ValueError(
                f"`{setting}` moves activations from an accelerator to the CPU's memory, and there is no accelerator. "
                "Leave it off; `gradient_checkpointing=True` saves memory on the CPU."
            )


def refuse_sequence_sharding(parallelism: Any) -> None:
    """Raise a ValueError where the rows would be split over processes."""
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "Context and sequence parallelism split each row over processes, and only one of them would hold the "
            "final position that the loss reads. Set cp_size and sp_size to 1; use FSDP or DeepSpeed ZeRO instead."
        )


@contextmanager
def temporarily(args: RegressionAwareConfig, **changes: Any) -> Iterator[None]:
    """For the time of a `with` block, give some settings another value than the user's."""
    before = {name: getattr(args, name) for name in changes}
    for name, value in changes.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
