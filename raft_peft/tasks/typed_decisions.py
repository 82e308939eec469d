"""Typed decisions: cases of four workflows, five typed questions each, with a distribution over the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset

HUB_DATASET = "LocalLLaMA/typed-decisions"
# Of all four workflows; each of them is a part of its own, too.
PART = "all"
SPLITS = ("train", "test")

_SIDES = ("true", "false")
# Shares are rounded in the dataset.
_TOLERANCE = 0.02


def load_typed_decisions(folder: str | Path | None = None, *, part: str = PART) -> DatasetDict:
    """The cases as rows of typed questions.

    A case of the dataset has `state` and `questions`, both JSON text, and `gold`, JSON text of the answers: for each
    question its `type`, the likeliest `label` and the `probabilities`. Those of a score are of the levels' places,
    those of a question of yes and no of `true` and `false`.

    Args:
        folder: a folder with `train*.parquet` and `test*.parquet`, or `.jsonl`, as the dataset's own folders are. By
            default the dataset comes from the Hub.
        part: `"all"`, or the name of one workflow, of the dataset on the Hub.

    Returns:
        `train` (1,200 cases of the full dataset) and `test` (400), with the columns `id`, `workflow`, `state`,
        `questions` and `targets`, the last three as JSON text.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
        ValueError: the answers of a case do not fit its questions. The message names the case.
    """
    if folder is None:
        source = load_dataset(HUB_DATASET, part)
    else:
        files = {split: _file_of(Path(folder), split) for split in SPLITS}
        kind = "parquet" if files["train"].suffix == ".parquet" else "json"
        source = load_dataset(kind, data_files={split: str(file) for split, file in files.items()})
    return DatasetDict(
        {split: source[split].map(_to_row, remove_columns=source[split].column_names) for split in SPLITS}
    )


def _file_of(folder: Path, split: str) -> Path:
    found = sorted([*folder.glob(f"{split}*.parquet"), *folder.glob(f"{split}*.jsonl")])
    if not found:
        raise FileNotFoundError(
            f"{folder} has no {split}*.parquet or {split}*.jsonl. It needs the files of {HUB_DATASET}."
        )
    return found[0]


def _to_row(case: Mapping[str, Any]) -> dict[str, Any]:
    questions, gold = json.loads(case["questions"]), json.loads(case["gold"])
    try:
        targets = {name: _shares(questions[name], answer) for name, answer in gold.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The answers of the case {case['id']!r} do not fit its questions: {error!r}. Download the dataset again."
        ) from error
    return {
        "id": case["id"],
        "workflow": case["workflow"],
        "state": case["state"],
        "questions": case["questions"],
        "targets": json.dumps(targets, ensure_ascii=False),
    }


def _shares(question: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, float]:
    """The shares of a question's options, by their names."""
    names = _SIDES if question["type"] == "noul" else list(question["criteria"])
    places = [str(place) for place in range(len(names))]
    given = answer["probabilities"]
    keys = places if question["type"] == "score" and set(given) <= set(places) else names
    unknown = sorted(set(given) - set(keys))
    total = sum(given.values())
    if unknown or abs(total - 1) > _TOLERANCE:
        raise ValueError(f"{dict(given)} are not shares of {list(names)}")
    return {name: given[key] / total for name, key in zip(names, keys, strict=True) if key in given}
