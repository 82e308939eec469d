"""The group of each row, where every group is to be covered by itself (Mondrian conformal prediction)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from numbers import Real
from typing import Any

from raft_peft.data.rows import each
from raft_peft.grid import number_text


def group_name(value: Any, row: int, column: str | None = None) -> str:
    """The name of a group: text, or a number, which is the same in CSV and elsewhere.

    Args:
        value: what names the group of a row.
        row: its number, for the message.
        column: where it stands in the row, for the message; None where groups came by themselves.

    Raises:
        ValueError: it names no group.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Real) and math.isfinite(value):
        return number_text(float(value))
    where = "`groups`" if column is None else f"the column {column!r}"
    raise ValueError(f"Row {row} has no group: {where} holds {value!r}. Give each row the name of its group.")


def grouped(
    prompts: Iterable[Any],
    groups: str | Iterable[Any],
    check: Callable[[str], None] | None = None,
    first_row: int = 0,
) -> tuple[Iterable[Any], list[str]]:
    """Prompts to be read, and the names of their groups, which are there once the prompts are read.

    Args:
        prompts: as a predictor takes them.
        groups: the column of the rows that names the group, or one name a prompt.
        check: is called with each name, once, and raises a ValueError for one that cannot be used.
        first_row: the number of the first prompt, for messages.

    Raises:
        ValueError: there are not as many names as prompts, or a row has no group; of a column or a stream as prompts
            are read.
    """
    names: list[str] = []
    if isinstance(groups, str):
        return _by_column(prompts, groups, names, check, first_row), names
    names = [group_name(value, row) for row, value in enumerate(each(groups), first_row)]
    if check is not None:
        for name in dict.fromkeys(names):
            check(name)
    if isinstance(prompts, Sized):
        check_count(names, len(prompts))
        return prompts, names
    return _counted(prompts, names), names


def check_count(names: list[str], prompts: int) -> None:
    """Raise a ValueError where there are not as many names of groups as prompts."""
    if len(names) != prompts:
        raise ValueError(f"`groups` has {len(names)} names for {prompts} prompts. Pass one for each prompt.")


def _counted(prompts: Iterable[Any], names: list[str]) -> Iterator[Any]:
    """Prompts of unknown number, each with its name."""
    count = 0
    for prompt in each(prompts):
        count += 1
        if count > len(names):
            check_count(names, count)
        yield prompt
    check_count(names, count)


def _by_column(
    prompts: Iterable[Any], column: str, names: list[str], check: Callable[[str], None] | None, first_row: int
) -> Iterator[Any]:
    seen: set[str] = set()
    for number, row in enumerate(each(prompts), first_row):
        if not isinstance(row, Mapping) or column not in row:
            has = f"has the columns {list(row)}" if isinstance(row, Mapping) else "is a prompt alone"
            raise ValueError(
                f"Row {number} {has}, and no group in the column {column!r}. Pass rows that have it, or "
                "one name for each prompt as `groups`."
            )
        name = group_name(row[column], number, column)
        if check is not None and name not in seen:
            check(name)
        seen.add(name)
        names.append(name)
        yield row
