"""The model card of a saved model: what it predicts, how well, and how to use it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer_utils import SchedulerType

from raft_peft.data.labels import as_number
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.forward.model import base_model
from raft_peft.grid import number_text
from raft_peft.methods import METHODS
from raft_peft.methods.saved_folder import CARD_NAME, PICTURE_NAME, TASK, RaftConfig
from raft_peft.metrics import Evaluation
from raft_peft.training.config import RegressionAwareConfig

TEMPLATE = Path(__file__).with_name("model_card_template.md")

# The template begins with these words, so that a card without them is known as the user's own.
_MARK = "<!-- Written by raft-peft at every save."

# The Hub has names of its own for the metrics that it knows, and shows no others.
_METRICS = {"rmse": "rmse", "mae": "mae", "pearson": "pearsonr", "spearman": "spearmanr"}
_LONGEST_PROMPT = 3000
_POINTS_DRAWN = 5000


# Every card cites the paper that the methods are from.
_CITATION = """@inproceedings{lukasik2025better,
    title        = {Better autoregressive regression with {LLM}s via regression-aware fine-tuning},
    author       = {Lukasik, Michal and Meng, Zhao and Narasimhan, Harikrishna and Chang, Yin-Wen and
                    Menon, Aditya Krishna and Yu, Felix and Kumar, Sanjiv},
    year         = 2025,
    booktitle    = {The Thirteenth International Conference on Learning Representations},
}"""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells.

    Attributes:
        name: of the model.
        repository: what `from_pretrained` is given: the Hub repository, or the folder's name.
        base_model: the model under the adapter, by its name on the Hub; None for one from a folder.
        architecture: of the model, in words.
        dataset_name: the dataset on the Hub, where it is known.
        config: what is saved beside the weights.
        adapter: the adapter in words, such as "LoRA, r = 16"; None where all weights were trained.
        training: what training was like, by name; empty where there was none.
        evaluations: by the name of the rows.
        prompt_shape: as [`prompt_shape`] gives it.
        tags: of the card, beside those of every model.
    """

    name: str
    repository: str
    base_model: str | None
    architecture: str
    dataset_name: str | None
    config: RaftConfig
    adapter: str | None
    training: Mapping[str, str]
    evaluations: Mapping[str, Evaluation]
    prompt_shape: Any | None
    tags: Sequence[str]

    @classmethod
    def of_run(
        cls,
        folder: str | Path,
        model: Any,
        config: RaftConfig,
        args: RegressionAwareConfig,
        *,
        name: str | None,
        repository: str | None,
        dataset_name: str | None,
        steps: int,
        epoch: float,
        evaluations: Mapping[str, Evaluation],
        prompt_shape: Any | None,
        tags: Sequence[str],
    ) -> CardFacts:
        """What a card tells of a run.

        Args:
            folder: where the model is saved.
            model: the model, with its adapter.
            config: what is saved beside the weights.
            args: the settings of the run.
            name: of the model; None for that of the repository.
            repository: on the Hub; None for the one of the settings, or the folder's name.
            dataset_name: the dataset on the Hub, where it is known.
            steps: after how many steps the weights were as they are.
            epoch: the passes over the dataset.
            evaluations: by the name of the rows; those of other weights are left out.
            prompt_shape: as [`prompt_shape`] gives it.
            tags: of the card, beside those of every model.
        """
        folder_name = Path(folder).resolve().name
        base = config.base_model
        return cls(
            name=name or (args.hub_model_id or folder_name).split("/")[-1],
            repository=repository or args.hub_model_id or folder_name,
            # The path of a folder would mean nothing to a reader elsewhere.
            base_model=base if base and not Path(base).is_dir() else None,
            architecture=_architecture_in_words(model),
            dataset_name=dataset_name,
            config=config,
            adapter=_adapter_in_words(model),
            training=_training_facts(args, steps, epoch),
            evaluations={key: one for key, one in evaluations.items() if one.step == steps},
            prompt_shape=prompt_shape,
            tags=tags,
        )


def _training_facts(args: RegressionAwareConfig, steps: int, epoch: float) -> dict[str, str]:
    """What the training was like, by name and in words; empty where no step was taken."""
    if steps == 0:
        return {}
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    # The trainer leaves it open where there are none.
    beta = args.preference_beta
    preferences = {} if beta is None else {"Preferences": f"by the loss of Bradley and Terry, beta = {beta:g}"}
    return {
        **preferences,
        "Steps": f"{steps} of {rows} rows a process",
        "Epochs": f"{epoch:.3g}",
        "Processes": str(args.world_size),
        "Learning rate": f"{args.learning_rate:g}, {SchedulerType(args.lr_scheduler_type).value}",
        "Optimizer": str(args.optim.value),
        "Gradient checkpointing": "on" if args.gradient_checkpointing else "off",
        "padding_free": "on" if args.padding_free else "off",
        "Seed": str(args.seed),
    }


def _architecture_in_words(model: Any) -> str:
    config = model.config.get_text_config()
    kind = type(base_model(model)).__name__
    return f"A `{kind}` language model ({config.num_hidden_layers} layers of width {config.hidden_size})"


def _adapter_in_words(model: Any) -> str | None:
    adapters = getattr(model, "peft_config", {}).values()
    words = [f"{one.peft_type.value}, r = {one.r}" if hasattr(one, "r") else one.peft_type.value for one in adapters]
    return ", ".join(words) or None


def is_ours(folder: str | Path) -> bool:
    """Whether a folder has no card yet, or one that was written here and that nobody wants to keep."""
    path = Path(folder) / CARD_NAME
    return not path.is_file() or _MARK in path.read_text(encoding="utf-8", errors="replace")


def save_card(facts: CardFacts, folder: str | Path, pictures: CardPictures | None = None) -> None:
    """Write the card into a folder, and beside it predictions over the truth, where there was an evaluation.

    Args:
        facts: what the card tells.
        folder: where the model is saved.
        pictures: of the run's other cards, so that none is drawn twice.
    """
    pictures = CardPictures() if pictures is None else pictures
    # Answers to several questions are numbers of several scales, and no one picture.
    names = [] if facts.config.asks_questions else pictures.save(facts.evaluations, Path(folder))
    model_card(facts, names).save(Path(folder) / CARD_NAME)


def model_card(facts: CardFacts, pictures: Sequence[str] = ()) -> ModelCard:
    """The card, with the names of the pictures beside it."""
    metric_names = list(dict.fromkeys(name for one in facts.evaluations.values() for name in one.metrics))
    text, literal = _prompt(facts.prompt_shape, facts.config.prompt_template)
    return ModelCard.from_template(
        _metadata(facts),
        template_path=str(TEMPLATE),
        model_name=facts.name,
        base_model=facts.base_model,
        architecture=facts.architecture,
        dataset_name=facts.dataset_name,
        repository=facts.repository,
        reads=_how_it_reads(facts.config),
        needs_head=f", head={facts.config.head}(...)" if facts.config.head is not None else "",
        writes_reasons=facts.config.score_prefix is not None,
        has_distribution=METHODS[facts.config.method].limited_by_grid,
        trained=bool(facts.training),
        zero_shot=not facts.training and facts.adapter is None,
        facts=_facts(facts),
        asks_questions=facts.config.asks_questions,
        questions=json.dumps(facts.config.questions, ensure_ascii=False, indent=2) if facts.config.questions else None,
        prompt_text=text,
        prompt_literal=literal,
        evaluated=list(facts.evaluations),
        row_counts=[len(one.labels) + one.pairs for one in facts.evaluations.values()],
        metrics=[
            (metric, [_rounded(one.metrics.get(metric, math.nan)) for one in facts.evaluations.values()])
            for metric in metric_names
        ],
        pictures=pictures,
        training=list(facts.training.items()),
        versions=", ".join(f"{name} {version}" for name, version in facts.config.versions.items()),
        citation=_CITATION,
    )


def _how_it_reads(config: RaftConfig) -> str:
    method = METHODS[config.method]
    if config.asks_questions:
        return (
            "It answers typed questions about a text, several at once: scores by the expected level, yes and no by "
            "the probability of yes, numbers by their expectation, and choices by the likeliest option."
        )
    if config.score_prefix is not None:
        return (
            "It was trained to write a reasoning before its number; a prediction is the mean over the reasonings that "
            "are given or written."
        )
    if method.reads_text:
        return "It answers a prompt in text, from which the number is parsed."
    if method.limited_by_grid:
        return (
            "It answers a prompt with a distribution over a grid of numbers, and its prediction is the "
            f"{config.decision} of that distribution."
        )
    return "A head reads the number off what the model makes of the prompt."


def _metadata(facts: CardFacts) -> ModelCardData:
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=facts.dataset_name or "unpublished",
            dataset_name=facts.dataset_name or "unpublished rows",
            dataset_split=name,
            metric_type=_METRICS[metric],
            metric_value=round(value, 6),
        )
        for name, one in facts.evaluations.items()
        for metric, value in one.metrics.items()
        if metric in _METRICS and math.isfinite(value)
    ]
    return ModelCardData(
        library_name="raft-peft",
        base_model=facts.base_model,
        datasets=facts.dataset_name,
        model_name=facts.name,
        tags=sorted({TASK, "regression", "raft", "raft-peft", "trl", "generated_from_trainer", *facts.tags}),
        metrics=[_METRICS[name] for name in _METRICS if any(name in one.metrics for one in facts.evaluations.values())]
        or None,
        eval_results=results or None,
    )


def _facts(facts: CardFacts) -> list[tuple[str, str]]:
    config = facts.config
    quantization = (config.quantization or {}).get("quant_method")
    rows = {
        **(_facts_of_questions(config) if config.asks_questions else _facts_of_grid(config)),
        "Before the number": None
        if config.score_prefix is None
        else f"a reasoning, and behind it `{json.dumps(config.score_prefix, ensure_ascii=False)}`",
        "Trained weights": (facts.adapter or "all") if facts.training else None,
        "Base model in training": f"quantized ({quantization})" if quantization else config.dtype,
        # Messages are shown below, as JSON.
        "Prompt template": f"`{config.prompt_template}`" if isinstance(config.prompt_template, str) else None,
        "Longest prompt": f"{config.max_length} tokens; {_what_is_cut(config)}" if config.max_length else None,
    }
    return [(name, value.replace("|", "\\|")) for name, value in rows.items() if value is not None]


def _what_is_cut(config: RaftConfig) -> str:
    return "a longer state loses its end" if config.asks_questions else "a longer one loses its start"


def _facts_of_questions(config: RaftConfig) -> dict[str, str | None]:
    asked = ", ".join(f"{name} ({one['type']})" for name, one in (config.questions or {}).items())
    return {
        "Questions": asked or "differ from row to row",
        "Template of questions": f"`{config.question_template}`",
        "Method": f"`{config.method}`, {config.distribution_loss} for the distribution"
        if config.distribution_loss
        else f"`{config.method}`",
    }


def _facts_of_grid(config: RaftConfig) -> dict[str, str | None]:
    grid = config.grid
    if all(as_number(text) == value for value, text in grid):
        numbers = grid.texts
    else:
        numbers = tuple(f"{number_text(value)} as {text!r}" for value, text in grid)
    shown = numbers if len(numbers) <= 12 else (*numbers[:3], "...", *numbers[-2:])
    return {
        "Grid": f"{', '.join(shown)} ({len(numbers)} numbers)" if len(numbers) > 1 else f"{shown[0]} alone",
        "Method": f"`{config.method}` (the paper's {METHODS[config.method].source})",
        "Renormalized over the grid": "yes" if config.renormalize else None,
    }


def _prompt(shape: Any | None, template: Any | None) -> tuple[str | None, str]:
    """How prompts look, as a text to read, and as a Python literal to predict."""
    if template is not None:
        row = dict.fromkeys(PromptTemplate(template).columns, "...")
        text = template if isinstance(template, str) else json.dumps(template, ensure_ascii=False, indent=2)
        return text, json.dumps(row, ensure_ascii=False)
    if shape is None:
        return None, '"..."'
    if isinstance(shape, str):
        text = _shortened(shape)
        return text, json.dumps(text, ensure_ascii=False)
    turns = [{**message, "content": _shortened(message["content"])} for message in shape]
    return json.dumps(turns, ensure_ascii=False, indent=2), json.dumps(turns, ensure_ascii=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PROMPT else f"...{text[-_LONGEST_PROMPT:]}"


def _rounded(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


class CardPictures:
    """The pictures of a run's cards. Those of a checkpoint are those of `output_dir` too, and are drawn once."""

    def __init__(self) -> None:
        self._evaluations: Mapping[str, Evaluation] = {}
        self._paths: list[Path] = []

    def save(self, evaluations: Mapping[str, Evaluation], folder: Path) -> list[str]:
        """Draw the evaluations into a folder, or copy what was drawn of the same. The names of the pictures."""
        same = [*map(id, self._evaluations.values())] == [*map(id, evaluations.values())]
        if not same or not all(path.is_file() for path in self._paths):
            self._paths = [folder / name for name in _draw(evaluations, folder)]
            self._evaluations = dict(evaluations)
        for path in self._paths:
            if path.resolve() != (folder / path.name).resolve():
                shutil.copyfile(path, folder / path.name)
        return [path.name for path in self._paths]


def _draw(evaluations: Mapping[str, Evaluation], folder: Path) -> list[str]:
    """Draw predictions over the truth, where there are any and matplotlib is installed; the names of the pictures.

    Where labels are several ratings, the distributions are drawn, too.
    """
    finite = {name: one for name, one in evaluations.items() if np.isfinite(one.predictions).any()}
    if not finite or find_spec("matplotlib") is None:
        return []
    from raft_peft.plots import plot_evaluation, plot_predictions

    name, last = list(finite.items())[-1]
    some = last.of_rows(np.random.default_rng(0).permutation(len(last.labels))[:_POINTS_DRAWN])
    if some.distributions is None or not some.distributions.rated.any():
        plot_predictions(folder / PICTURE_NAME, some.labels, {name: some.predictions})
        return [PICTURE_NAME]
    return [path.name for path in plot_evaluation(folder / PICTURE_NAME, some, name)]
