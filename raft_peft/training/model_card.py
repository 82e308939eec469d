"""The model card of a saved model: what it predicts, how well, and how to use it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from raft_peft.data.labels import as_number
from raft_peft.grid import number_text
from raft_peft.methods import METHODS
from raft_peft.methods.saved_folder import CARD_NAME, PICTURE_NAME, TASK, RaftConfig
from raft_peft.metrics import Evaluation

TEMPLATE = Path(__file__).with_name("model_card_template.md")

# Stands in the template.
_MARK = "<!-- Written by raft-peft at every save."

# As the Hub names them.
_METRICS = {"rmse": "rmse", "mae": "mae", "pearson": "pearsonr", "spearman": "spearmanr"}
_LONGEST_PROMPT = 3000
_POINTS_DRAWN = 5000


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells.

    Attributes:
        name: of the model.
        repository: what `from_pretrained` is given: the Hub repository, or the folder's name.
        base_model: the model under the adapter, by its name on the Hub; None for one from a folder.
        dataset_name: the dataset on the Hub, where it is known.
        config: what is saved beside the weights.
        adapter: the adapter in words, such as "LoRA, r = 16"; None where all weights were trained.
        training: what training was like, by name; empty where there was none.
        evaluations: by the name of the rows.
        prompt_shape: as [`prompt_shape`] gives it.
        tags: of the card, beside those of every model.
        citation: BibTeX entries.
    """

    name: str
    repository: str
    base_model: str | None
    dataset_name: str | None
    config: RaftConfig
    adapter: str | None
    training: Mapping[str, str]
    evaluations: Mapping[str, Evaluation]
    prompt_shape: Any | None
    tags: Sequence[str]
    citation: str


def is_ours(folder: str | Path) -> bool:
    """Whether a folder has no card yet, or one that was written here and that nobody wants to keep."""
    path = Path(folder) / CARD_NAME
    return not path.is_file() or _MARK in path.read_text(encoding="utf-8", errors="replace")


def save_card(facts: CardFacts, folder: str | Path) -> None:
    """Write the card into a folder, and beside it predictions over the truth, where there was an evaluation."""
    picture = _draw(facts.evaluations, Path(folder))
    model_card(facts, picture).save(Path(folder) / CARD_NAME)


def model_card(facts: CardFacts, picture: str | None = None) -> ModelCard:
    """The card, with the name of a picture beside it."""
    metric_names = list(dict.fromkeys(name for one in facts.evaluations.values() for name in one.metrics))
    text, literal = _prompt(facts.prompt_shape)
    return ModelCard.from_template(
        _metadata(facts),
        template_path=str(TEMPLATE),
        model_name=facts.name,
        base_model=facts.base_model,
        dataset_name=facts.dataset_name,
        repository=facts.repository,
        reads=_how_it_reads(facts.config),
        needs_head=f", head={facts.config.head}(...)" if facts.config.head is not None else "",
        has_distribution=METHODS[facts.config.method].limited_by_grid,
        trained=bool(facts.training),
        zero_shot=not facts.training and facts.adapter is None,
        facts=_facts(facts),
        prompt_text=text,
        prompt_literal=literal,
        metric_names=metric_names,
        evaluations=[
            (name, len(one.labels), [_rounded(one.metrics.get(metric, math.nan)) for metric in metric_names])
            for name, one in facts.evaluations.items()
        ],
        picture=picture,
        training=list(facts.training.items()),
        versions=", ".join(f"{name} {version}" for name, version in facts.config.versions.items()),
        citation=facts.citation,
    )


def _how_it_reads(config: RaftConfig) -> str:
    method = METHODS[config.method]
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
    grid = config.grid
    if all(as_number(text) == value for value, text in grid):
        numbers = grid.texts
    else:
        numbers = tuple(f"{number_text(value)} as {text!r}" for value, text in grid)
    shown = numbers if len(numbers) <= 12 else (*numbers[:3], "...", *numbers[-2:])
    quantization = (config.quantization or {}).get("quant_method")
    rows = {
        "Grid": f"{', '.join(shown)} ({len(numbers)} numbers)",
        "Method": f"`{config.method}` (the paper's {METHODS[config.method].source})",
        "Renormalised over the grid": "yes" if config.renormalize else None,
        "Trained weights": (facts.adapter or "all") if facts.training else None,
        "Base model in training": f"quantized ({quantization})" if quantization else config.dtype,
        "Longest prompt": f"{config.max_length} tokens; a longer one loses its start" if config.max_length else None,
    }
    return [(name, value.replace("|", "\\|")) for name, value in rows.items() if value is not None]


def _prompt(shape: Any | None) -> tuple[str | None, str]:
    """How prompts look, as a text to read, and as a Python literal to predict."""
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


def _draw(evaluations: Mapping[str, Evaluation], folder: Path) -> str | None:
    """Draw predictions over the truth, where there are any and matplotlib is installed; the picture's name."""
    finite = {name: one for name, one in evaluations.items() if np.isfinite(one.predictions).any()}
    if not finite or find_spec("matplotlib") is None:
        return None
    from raft_peft.plots import plot_predictions

    name, last = list(finite.items())[-1]
    some = np.random.default_rng(0).permutation(len(last.labels))[:_POINTS_DRAWN]
    plot_predictions(folder / PICTURE_NAME, last.labels[some], {name: last.predictions[some]})
    return PICTURE_NAME
