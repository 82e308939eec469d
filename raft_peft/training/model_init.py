"""What training starts from: the model, its tokenizer, the adapter's configuration, the head."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftModel, TaskType
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
from trl.models import enable_selective_activation_checkpointing

from raft_peft.forward.model import base_model, check_final_logits, check_not_packed
from raft_peft.grid import NumberGrid
from raft_peft.messages import warn
from raft_peft.methods.adapter_inits import refuse_init_for_once
from raft_peft.methods.base_fingerprint import check_untouched_by_adapter, note_base
from raft_peft.methods.head_origin import head_origin, origin_difference
from raft_peft.methods.pretrained import with_dtype
from raft_peft.methods.readout import Readout
from raft_peft.methods.saved_folder import HEAD_FILE, RaftConfig, check_there_is, find_file, hub_options
from raft_peft.training.config import RegressionAwareConfig, temporarily
from raft_peft.training.number_tokens import check_number_tokens, with_number_tokens
from raft_peft.training.opening import open_by_name, output_shown_without_adapter, processing_class_of
from raft_peft.training.quantization import keep_precision
from raft_peft.training.speed.checkpointing import checkpointing_names
from raft_peft.training.trained_weights import active_adapter, check_optimizer

logger = logging.getLogger(__name__)


def checked_model(
    model: Any,
    processing_class: Any,
    grid: NumberGrid,
    args: RegressionAwareConfig,
    *,
    quantization_config: Any,
    peft_config: Any,
) -> tuple[Any, Any]:
    """The model and the tokenizer or processor to give to `SFTTrainer`, checked as far as they are open.

    A model given by name is opened; with `init="random"` it is made.

    Raises:
        ValueError: numbers cannot be read off the model; it does not go with the settings or the grid; or an adapter
            could not be opened again.
    """
    refuse_init_for_once(peft_config)
    named = isinstance(model, str) and args.init != "random"
    if args.init == "random":
        processing_class = processing_class or processing_class_of(model, args)
        model = random_model(model, args, quantization_config, peft_config)
    elif named:
        model, processing_class = open_by_name(
            model, processing_class, args, quantization_config=quantization_config, peft_config=peft_config
        )
    if active_adapter(model) is not None:
        refuse_init_for_once(model.active_peft_config)
    check_final_logits(model)
    check_not_packed(model)
    check_number_tokens(model, grid, processing_class)
    if isinstance(model, PeftModel) or isinstance(peft_config, PeftConfig):
        of_name = hub_options(args.model_init_kwargs or {})
        note_base(model, of_name if named else {"revision": getattr(peft_config, "revision", None)}, just_opened=named)
    return model, processing_class


@contextmanager
def as_trl_takes_it(model: Any, args: RegressionAwareConfig, *, named: bool) -> Iterator[None]:
    """For the time of a `with` block, in which `SFTTrainer` makes the trainer, hide from it what it would refuse.

    That is `padding_free` with `max_length`, as it would cut its own token labels, while here the encoder cuts; an
    adapter on the output matrix; and how a model given by name was opened, since it is open. Checkpointing that is
    left open is on, as TRL has it, until [`choose_for_speed`].
    """
    changes: dict[str, Any] = {"padding_free": False}
    if args.gradient_checkpointing is None:
        changes |= dict.fromkeys(checkpointing_names(args), True)
    if named:
        changes["model_init_kwargs"] = None
    with temporarily(args, **changes), output_shown_without_adapter(model):
        yield


def correct_after_trl(
    model: Any, args: RegressionAwareConfig, trained_before: dict[torch.nn.Parameter, torch.Tensor], *, fsdp: bool
) -> None:
    """Change what `SFTTrainer` did to a model where it does not serve here.

    Args:
        model: the model as TRL left it.
        args: the settings.
        trained_before: its `trained_tensors` before that.
        fsdp: whether FSDP shards it.

    Raises:
        ValueError: the new adapter could not be opened again.
    """
    if getattr(model, "is_quantized", False):
        keep_precision(model, trained_before, fsdp=fsdp)
    if (args.gradient_checkpointing_kwargs or {}).get("selective"):
        # TRL wraps the method of the PEFT model, while `Trainer` calls that of the model under it.
        enable_selective_activation_checkpointing(base_model(model))
    check_untouched_by_adapter(model)


def prepare_head(
    readout: Readout,
    model: Any,
    args: RegressionAwareConfig,
    accelerator: Any,
    *,
    folder: str | None,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """See that a head with parameters is trained, and goes on from those that a folder was saved with.

    Where those are of other settings or another grid, training begins with a new head, and that is said.

    Args:
        readout: the method at work on the model.
        model: with its adapter and its head.
        args: the settings.
        accelerator: wraps the model.
        folder: the model's name, which may be that of a saved folder; None for a model that was given open.
        optimizer: that the user made, if any.

    Raises:
        ValueError: the user's optimizer was made before the adapter or the head, and would not train it.
    """
    check_optimizer(optimizer, model, args.method)
    if not readout.has_parameters:
        return
    if readout.head.reads_hidden_states and args.ddp_find_unused_parameters is None:
        # The output over the vocabulary has no part in the loss, which DDP has to be told. `Trainer` has read the
        # argument of that name already, so it is told by accelerate's handler.
        accelerator.ddp_handler.find_unused_parameters = True
    if folder is None or args.init == "random":
        return
    hub = hub_options(args.model_init_kwargs or {})
    path, saved = find_file(folder, HEAD_FILE, hub), RaftConfig.find(folder, hub)
    if path is None or saved is None:
        return
    then = head_origin(saved, saved.grid, readout.tokenizer, own_head=saved.head)
    difference = origin_difference(then, readout.head_origin)
    if difference is None:
        readout.load_head(path)
        return
    warn(logger, f"The head that {folder!r} was saved with is for {difference}. Training begins with a new head.")


def random_model(model: Any, args: RegressionAwareConfig, quantization_config: Any, peft_config: Any) -> Any:
    """A model of the architecture named, with random weights (`init="random"`).

    Raises:
        ValueError: no name was given, or not all weights would be trained.
    """
    if not isinstance(model, str):
        raise ValueError("`init='random'` needs the model's name, to take its architecture from. Pass it as a string.")
    if quantization_config is not None or peft_config is not None:
        raise ValueError(
            "`init='random'` trains all weights: an adapter on random weights, or random weights quantized, could "
            "not be loaded again. Leave out `peft_config` and `quantization_config`."
        )
    options = with_dtype(args.model_init_kwargs or {})
    trust = {"trust_remote_code": options.pop("trust_remote_code", args.trust_remote_code)}
    of_config = {name: options.pop(name) for name in ("attn_implementation", "dtype") if name in options}
    options.pop("device_map", None)
    check_there_is(model, hub_options(options))
    config = AutoConfig.from_pretrained(model, **options, **trust)
    set_seed(args.seed)
    return AutoModelForCausalLM.from_config(config, **trust, **{"dtype": torch.float32, **of_config})


def reloadable(
    peft_config: PeftConfig | None, model: Any, args: RegressionAwareConfig, *, named: bool
) -> PeftConfig | None:
    """The adapter's configuration with what `AutoPeftModelForCausalLM` needs to open the same model again.

    Args:
        peft_config: as the user gave it.
        model: the open model.
        args: the settings.
        named: whether the model was given by its name.

    Raises:
        ValueError: the configuration is for another task, or cannot hold the model's tokens of numbers.
    """
    peft_config = with_number_tokens(peft_config, model)
    if not isinstance(peft_config, PeftConfig):
        return peft_config
    if peft_config.task_type not in (None, TaskType.CAUSAL_LM):
        raise ValueError(
            f"The adapter's task_type is {peft_config.task_type}, but the numbers are read from a language model's "
            "next-token probabilities. Set task_type='CAUSAL_LM'."
        )
    revision = peft_config.revision
    if named and revision is None:
        revision = (args.model_init_kwargs or {}).get("revision")
    if peft_config.task_type == TaskType.CAUSAL_LM and peft_config.revision == revision:
        return peft_config
    return dataclasses.replace(peft_config, task_type=TaskType.CAUSAL_LM, revision=revision)
