"""Datasets of rows that lie in files, as training takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset

from raft_peft.data.chats import CHAT_COLUMNS
from raft_peft.data.labels import LabelColumn, with_number
from raft_peft.data.preferences import CHOSEN, MARGIN, REJECTED, may_prefer
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.ratings import of_one_kind
from raft_peft.data.reasoning.reasonings import REASONING
from raft_peft.data.row_sources import read_rows

# What a row may hold besides its label.
_COLUMNS = (
    *("prompt", "completion", "input_ids", "attention_mask", REASONING),
    *(*CHAT_COLUMNS, CHOSEN, REJECTED, MARGIN),
)


def read_dataset(path: str, template: PromptTemplate | None = None, label_column: str = "label") -> Dataset:
    """The rows of a file as `predict` and `evaluate` read them, and of their columns those that training takes.

    Args:
        path: as [`read_rows`] takes it.
        template: of the prompts, whose columns are kept; None where there is a column of prompts.
        label_column: the column of the target number.

    Raises:
        ValueError: a file of another format, or without rows' prompts or labels; or a column of values of several
            kinds.
        FileNotFoundError: there is no such file.
    """
    rows = [with_number(row, label_column) for row in read_rows(path)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    wanted = () if template is None else template.columns
    prefers = may_prefer(names, label_column)
    if rows and template is not None and not prefers:
        template(rows[0], 0)
    elif rows and not prefers and not {"prompt", "input_ids"} & set(names):
        raise ValueError(
            f"{path} has the columns {names}, and no `prompt`. Rename the column of the text, or write "
            "it with `prompt_template='Review: {text} Stars:'`."
        )
    if rows and not LabelColumn.of(label_column).is_in(names) and not prefers:
        raise ValueError(
            f"{path} has the columns {names}, and no label in {label_column!r}. Rename the column of the target to "
            f"{label_column!r}, or give its name as `label_column`."
        )
    known = [name for name in names if name in (label_column, *_COLUMNS, *wanted)]
    columns = {name: [row.get(name) for row in rows] for name in known}
    if label_column in columns:
        labels = columns[label_column]
        # In CSV the empty cell of a preference is a text.
        labels = [None if label == "" else label for label in labels] if prefers else labels
        columns[label_column] = of_one_kind(labels)
    if any(isinstance(one, list) for one in columns.get(REASONING, [])):
        columns[REASONING] = [[one] if isinstance(one, str) else one for one in columns[REASONING]]
    try:
        return Dataset.from_dict(columns)
    except (pyarrow.ArrowException, TypeError, OverflowError):
        for name, values in columns.items():
            _check_one_kind(path, name, values)
        raise


def _check_one_kind(path: str, name: str, values: Sequence[Any]) -> None:
    """Raise a ValueError that names the first row whose value is of another kind than those before it."""
    if _fit_together(values):
        return
    fit, do_not = 0, len(values)
    while do_not - fit > 1:
        middle = (fit + do_not) // 2
        fit, do_not = (middle, do_not) if _fit_together(values[:middle]) else (fit, middle)
    before = next((value for value in values[:fit] if value is not None), None)
    if before is None:
        raise ValueError(f"{path}: row {fit} has the {name} {values[fit]!r:.80}, which no column of numbers can hold.")
    cure = "Write all prompts as texts, or all as chats." if name == "prompt" else "Write all as the same kind."
    raise ValueError(
        f"{path}: row {fit} has the {name} {values[fit]!r:.80}, which does not fit those of the rows before it, such "
        f"as {before!r:.80}. In training the values of a column are of one kind. {cure}"
    )


def _fit_together(values: Sequence[Any]) -> bool:
    try:
        Dataset.from_dict({"value": list(values)})
    except (pyarrow.ArrowException, TypeError, OverflowError):
        return False
    return True
