"""The rows of a comparison: of a task, or of files of one's own."""

from __future__ import annotations

import hashlib
import json
import math
from numbers import Real
from typing import Any

from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from raft_peft.compare.settings import CompareSettings
from raft_peft.data.chats import CHAT_COLUMNS
from raft_peft.data.ratings import as_one_number
from raft_peft.data.reasoning.reasonings import REASONING
from raft_peft.data.row_datasets import read_dataset
from raft_peft.tasks import get_task

SPLITS = ("train", "validation", "test")

# The share of the training rows that is held out for a split without a file, as the paper does on STS-B.
HELD_OUT = 0.15


def check_dataset(dataset: DatasetDict) -> None:
    """Raise a ValueError where a split is missing, or rows have reasonings before their scores."""
    missing = [split for split in SPLITS if split not in dataset]
    if missing:
        raise ValueError(f"The dataset has no {', '.join(missing)}. It needs the splits {', '.join(SPLITS)}.")
    for split in SPLITS:
        if REASONING in dataset[split].column_names and any(one is not None for one in dataset[split][REASONING]):
            raise ValueError(
                f"The {split} split has a column `{REASONING}`, and a comparison reads scores behind prompts alone. "
                "Leave the column out, or train on it with `RegressionAwareTrainer` or `raft-peft train`."
            )


def load_rows(settings: CompareSettings) -> DatasetDict:
    """The rows that the settings name: of a task, or of files."""
    if settings.train_file is not None:
        return _held_out(_read_files(settings), settings)
    (task,), (path,) = settings.tasks(), settings.task_paths()
    rows, template = get_task(task).load(path, settings.split_seed), settings.template()
    return rows if template is None else template.write_all(rows, f"The task {task}")


def _read_files(settings: CompareSettings) -> dict[str, Dataset]:
    files = {"train": settings.train_file, "validation": settings.eval_file, "test": settings.test_file}
    splits = {}
    for split, path in files.items():
        if path is not None:
            template = settings.template()
            rows = read_dataset(path, template, settings.label_column)
            rows = rows if template is None else template.write_all(rows, path)
            if settings.label_column != "label" and settings.label_column in rows.column_names:
                rows = rows.rename_column(settings.label_column, "label")
            splits[split] = rows
    return splits


def _held_out(splits: dict[str, Dataset], settings: CompareSettings) -> DatasetDict:
    """The splits, those without a file taken from the training rows, which is said.

    Raises:
        ValueError: too few rows to take any from.
    """
    missing = [split for split in SPLITS if split not in splits]
    rows = splits["train"]
    count = max(1, round(HELD_OUT * len(rows)))
    if missing and len(rows) - count * len(missing) < 1:
        raise ValueError(
            f"{settings.train_file} has {len(rows)} rows, too few to hold some out for {' and '.join(missing)}. Set "
            "`eval_file` and `test_file`."
        )
    if missing:
        left = rows.shuffle(seed=settings.split_seed)
        for place, split in enumerate(missing):
            splits[split] = left.select(range(place * count, (place + 1) * count))
        splits["train"] = left.select(range(count * len(missing), len(left)))
        tqdm.write(
            f"Held out of {settings.train_file} by seed {settings.split_seed}: {count} rows for "
            f"{' and as many for the '.join(missing)}; {len(splits['train'])} are left to train on."
        )
    return DatasetDict({split: splits[split] for split in SPLITS})


def kept_rows(dataset: DatasetDict, settings: CompareSettings) -> DatasetDict:
    """The rows of every run: the first of each split, as many as were asked for.

    Raises:
        ValueError: a column is missing, a split is empty, or a label is neither a number nor ratings.
    """
    limits = {
        "train": settings.max_train_samples,
        "validation": settings.max_eval_samples,
        "test": settings.max_test_samples,
    }
    kept = {}
    for split, limit in limits.items():
        missing = {"prompt", "label"} - set(dataset[split].column_names)
        if missing:
            raise ValueError(f"The {split} split has no column {' and '.join(sorted(missing))}. Rename its columns.")
        if len(dataset[split]) == 0:
            raise ValueError(f"The {split} split has no rows.")
        columns = [name for name in ("prompt", "label", *CHAT_COLUMNS) if name in dataset[split].column_names]
        rows = dataset[split].select_columns(columns)
        kept[split] = rows if limit is None else rows.select(range(min(limit, len(rows))))
        faults = {row: fault for row, label in enumerate(kept[split]["label"]) if (fault := _fault(label)) is not None}
        if faults:
            rows_named, reason = list(faults)[:5], next(iter(faults.values()))
            raise ValueError(
                f"The {split} split has labels that are no finite numbers, in the rows {rows_named}: {reason}"
            )
    return DatasetDict(kept)


def nested_rows(rows: Dataset, count: int | None, seed: int) -> Dataset:
    """So many of the training rows, drawn by the seed of the splits; None for all, in their order.

    Fewer rows are always among more. They are drawn, since the first rows of a file may be all of one kind.
    """
    return rows if count is None else rows.shuffle(seed=seed).select(range(count))


def labels_of(rows: Dataset) -> list[float]:
    """The label of each row, of ratings their mean."""
    return [float(as_one_number(label)) for label in rows["label"]]


def _fault(label: Any) -> str | None:
    """Why a label cannot be used, None where it can."""
    try:
        number = as_one_number(label)
    except ValueError as error:
        return str(error)
    if isinstance(number, Real) and math.isfinite(number):
        return None
    return f"the label is {label!r:.80}. Drop the row, or repair its label."


def digest(rows: Dataset) -> str:
    """The same for the same rows, so that a comparison does not go on with others."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]
