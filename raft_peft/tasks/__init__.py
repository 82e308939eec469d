"""Datasets of the paper: rows of `prompt` and `label`, with the grid they are scored on. One task a file.

Tasks of typed questions are in a table of their own, since their rows bring their values along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["QUESTION_TASKS", "TASKS", "QuestionTask", "Task", "get_question_task", "get_task"]


@dataclass(frozen=True)
class Task:
    """A dataset under a name.

    Attributes:
        name: the name it is asked for by.
        grid: the numbers that the model may answer with, in the unit of the labels. It is the paper's; any other can
            take its place, such as 0 to 5 for STS-B.
        load: from the path of local files (None for the task's default source) and a seed to `train`, `validation`
            and `test`, with the columns `prompt` and `label`.
        description: one line on what is predicted from what.
    """

    name: str
    grid: Sequence[float]
    load: Callable[[str | Path | None, int], DatasetDict]
    description: str


@dataclass(frozen=True)
class QuestionTask:
    """A dataset of typed questions under a name.

    Attributes:
        name: the name it is asked for by.
        load: from the path of local files (None for the task's default source) to its splits, with the columns
            `state`, `questions` and `targets`.
        description: one line on what is asked of what.
    """

    name: str
    load: Callable[[str | Path | None], DatasetDict]
    description: str


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: there is none. The message lists the names there are.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}. Choose one of: {', '.join(TASKS)}.")
    return TASKS[name]


def get_question_task(name: str) -> QuestionTask:
    """The task of typed questions of this name.

    Raises:
        ValueError: there is none. The message lists the names there are.
    """
    if name not in QUESTION_TASKS:
        raise ValueError(f"There is no task of typed questions {name!r}. Choose one of: {', '.join(QUESTION_TASKS)}.")
    return QUESTION_TASKS[name]


# The loaders import `datasets`, so each is imported when it is called.


def _load_stsb(path: str | Path | None, seed: int) -> DatasetDict:
    from raft_peft.tasks.stsb import load_stsb

    return load_stsb(path, seed=seed)


def _load_stsb_1k(path: str | Path | None, seed: int, rows: int = 1_000) -> DatasetDict:
    dataset = _load_stsb(path, seed)
    if len(dataset["train"]) < rows:
        raise ValueError(
            f"The train split of STS-B has {len(dataset['train']):,} pairs here, fewer than {rows:,}. Give the whole "
            "dataset, or take the task 'stsb'."
        )
    dataset["train"] = dataset["train"].shuffle(seed=seed).select(range(rows))
    return dataset


def _load_amazon_reviews(category: str, path: str | Path | None, seed: int) -> DatasetDict:
    from raft_peft.tasks.amazon_reviews import load_amazon_reviews

    return load_amazon_reviews(category, path, seed=seed)


def _load_movielens(path: str | Path | None, seed: int) -> DatasetDict:
    from raft_peft.tasks.movielens import load_movielens

    return load_movielens(path, seed=seed)


def _load_synthetic(path: str | Path | None, seed: int) -> DatasetDict:
    from datasets import DatasetDict

    from raft_peft.tasks.synthetic import SPLIT_SIZES, load_synthetic

    # Three seeds a seed, so that no split of one seed is a split of another.
    return DatasetDict(
        {name: load_synthetic(rows, seed=3 * seed + offset) for offset, (name, rows) in enumerate(SPLIT_SIZES.items())}
    )


def _load_typed_decisions(path: str | Path | None) -> DatasetDict:
    from raft_peft.tasks.typed_decisions import load_typed_decisions

    return load_typed_decisions(path)


_STARS = range(1, 6)

TASKS = {
    task.name: task
    for task in (
        Task("stsb", range(1, 6), _load_stsb, "similarity of two sentences, 0 to 5"),
        Task("stsb_1k", range(1, 6), _load_stsb_1k, "similarity of two sentences, 0 to 5, from 1,000 training pairs"),
        Task("amazon_wireless", _STARS, partial(_load_amazon_reviews, "wireless"), "stars of a wireless review"),
        Task(
            "amazon_personal_care",
            _STARS,
            partial(_load_amazon_reviews, "personal_care"),
            "stars of a personal care review",
        ),
        Task("amazon_music", _STARS, partial(_load_amazon_reviews, "music"), "stars of a music review"),
        Task("movielens_1m", _STARS, _load_movielens, "stars of a movie, from the user's earlier ratings"),
        Task("synthetic", range(10), _load_synthetic, "Original #1, a function of one number, scaled to 0 to 9"),
    )
}

QUESTION_TASKS = {
    task.name: task
    for task in (
        QuestionTask(
            "typed_decisions", _load_typed_decisions, "five questions on each case of a workflow, with distributions"
        ),
    )
}
