"""Rows out of whatever holds them: lists, streams, data frames, Arrow tables, datasets of any format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from raft_peft.data.ratings import of_one_kind

# Rows of a table that are made Python's own at a time.
_SLICE = 1024


def as_rows(prompts: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Prompts as rows: texts and chats as the `prompt` of one, rows as they are.

    Raises:
        ValueError: it is one prompt, or what holds no rows in an order.
    """
    for prompt in each(prompts):
        if isinstance(prompt, Mapping) and "role" in prompt:
            raise ValueError("`prompts` must be a list of chats. For one chat, pass a list of one: [messages].")
        yield prompt if isinstance(prompt, Mapping) else {"prompt": prompt}


def each(source: Any) -> Iterator[Any]:
    """The rows of a table, or the items of anything else, one by one.

    Args:
        source: a data frame of pandas or Polars, an Arrow table, or a dataset, whose format does not matter; a column
            of these; or any iterable.

    Raises:
        ValueError: it holds no rows in an order, or has two columns of one name.
    """
    if isinstance(source, str | bytes):
        raise ValueError("`prompts` must be a list of prompts. For one prompt, pass a list of one: [prompt].")
    if isinstance(source, Mapping):
        raise ValueError(_what_the_dict_is(source))
    if isinstance(source, set | frozenset):
        raise ValueError("The rows are a set, which has no order. Pass a list, so that predictions come in its order.")
    if isinstance(source, Dataset | IterableDataset):
        return iter(unformatted(source))
    _check_names(source)
    if hasattr(source, "iter_rows"):  # of Polars
        return source.iter_rows(named=True)
    if hasattr(source, "to_pylist"):  # of Arrow
        return _sliced(len(source), lambda start: source.slice(start, _SLICE).to_pylist())
    if hasattr(source, "itertuples"):  # of pandas
        return _sliced(len(source), lambda start: _rows_of_pandas(source.iloc[start : start + _SLICE]))
    try:
        return iter(source)
    except TypeError:
        raise ValueError(
            f"The rows are {source!r}, a {type(source).__name__}, which cannot be read one by one. Pass a list, a "
            "dataset or a data frame."
        ) from None


def features_of(source: Any) -> Mapping[str, Any]:
    """The types of the columns of a dataset, by their names; empty where they are not known."""
    return (getattr(source, "features", None) or {}) if isinstance(source, Dataset | IterableDataset) else {}


def as_dataset(source: Any, name: str, label_column: str | None = None) -> Dataset | IterableDataset:
    """Rows as a dataset of Python's own values.

    Args:
        source: a dataset, with or without a format or transform; or what `each` takes.
        name: what to call it in messages.
        label_column: a column in which some rows may have one number, and some the ratings of several raters.

    Raises:
        ValueError: as `each`; or rows whose columns hold values of unlike types.
    """
    if isinstance(source, Dataset | IterableDataset):
        return unformatted(source)
    try:
        rows = list(as_rows(source))
    except ValueError as error:
        raise ValueError(f"The {name} dataset cannot be read. {error}") from error
    names = dict.fromkeys(column for row in rows for column in row)
    columns = {column: [row.get(column) for row in rows] for column in names}
    if label_column in columns:
        columns[label_column] = of_one_kind(columns[label_column])
    try:
        return Dataset.from_dict(columns)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The rows of the {name} dataset do not fit into one table: {error}. Give each column values of one type."
        ) from error


def unformatted(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """A dataset whose rows are Python's own values, whatever its format; where it has a transform, those it makes."""
    if isinstance(dataset, IterableDataset):
        return dataset.with_format(None)
    form = dataset.format
    if form["type"] is None and set(form["columns"]) == set(dataset.column_names):
        return dataset
    plain = dataset.with_format(None)
    if not form["output_all_columns"]:
        plain = plain.select_columns(form["columns"])
    if form["type"] != "custom":
        return plain
    transform = form["format_kwargs"]["transform"]

    def transformed(batch: Mapping[str, Any]) -> dict[str, Any]:
        # Plain dicts, since of what `map` hands out itself it drops what is returned unchanged.
        return dict(transform(dict(batch)))

    return plain.map(transformed, batched=True, remove_columns=form["columns"])


def _what_the_dict_is(source: Mapping[str, Any]) -> str:
    if any(isinstance(value, Dataset | IterableDataset) for value in source.values()):
        names = ", ".join(map(repr, source))
        return f"The rows are a dict of the datasets {names}. Pass one of them: datasets[{next(iter(source))!r}]."
    lists = [name for name, value in source.items() if isinstance(value, Sequence) and not isinstance(value, str)]
    if lists and "prompt" not in source:
        return (
            f"The rows are a dict of the columns {', '.join(map(repr, source))}. Pass a list of rows, or make a "
            "dataset of the columns: Dataset.from_dict(columns)."
        )
    return "`prompts` must be a list of prompts. For one prompt, pass a list of one: [prompt]."


def _check_names(source: Any) -> None:
    """Refuse a table with two columns of one name, of which one would be lost."""
    names = getattr(source, "column_names", None)
    if names is None and hasattr(source, "itertuples"):
        names = source.columns
    seen = [] if names is None else list(names)
    twice = next((name for name in seen if seen.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"The rows have two columns of the name {twice!r}. Rename or drop one.")


def _rows_of_pandas(frame: Any) -> list[dict[str, Any]]:
    """The rows of a data frame; what pandas calls missing is None."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _sliced(count: int, rows_from: Callable[[int], Iterable[Any]]) -> Iterator[Any]:
    for start in range(0, count, _SLICE):
        yield from rows_from(start)
