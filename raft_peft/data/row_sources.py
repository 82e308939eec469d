"""Rows out of files, saved datasets and the Hub, read one by one as they are needed."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raft_peft.data.reasoning.reasonings import REASONING
from raft_peft.data.row_files import as_json, delimiter_of, key_twice

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
FORMATS_IN_WORDS = (
    "a file in .jsonl, .csv, .tsv or .parquet; a folder of Dataset.save_to_disk; or a dataset of the Hub with its "
    "split, as nyu-mll/glue:stsb:validation or stanfordnlp/imdb:test"
)

# OWNER/NAME[:CONFIG][:SPLIT]
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")


def read_rows(source: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a source, as they are needed.

    Args:
        source: a file of JSON Lines (`.jsonl`: an object a line), CSV or TSV (`.csv`, `.tsv`: with a header), in
            UTF-8, or Parquet (`.parquet`); a folder that `Dataset.save_to_disk` wrote, or `FOLDER:SPLIT` where it
            holds several splits; or a dataset of the Hub, `OWNER/NAME:SPLIT` or `OWNER/NAME:CONFIG:SPLIT`. Of a
            column of classes the names are read.

    Raises:
        ValueError: the source has another format, a line that is not a row, or several splits and none is named. The
            message names file and line.
        FileNotFoundError: there is no such file.
    """
    path, text = Path(source), str(source)
    folder, _, split = text.rpartition(":")
    if path.is_dir():
        return _read_saved(text, None)
    if folder and Path(folder).is_dir():
        return _read_saved(folder, split)
    if path.suffix not in FORMATS and not path.exists() and _ON_HUB.fullmatch(text):
        return _read_hub(text)
    if path.suffix not in FORMATS:
        raise ValueError(f"{text!r} ends in {path.suffix!r}. Rows are read from {FORMATS_IN_WORDS}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {text!r}.")
    if path.suffix == ".jsonl":
        return _read_json_lines(path)
    return _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return named_rows(Dataset.from_parquet(str(path)))
    except (DatasetGenerationError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is not Parquet: {error.__cause__ or error}.") from error


def _read_saved(folder: str, split: str | None) -> Iterator[dict[str, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(folder)
    except FileNotFoundError:
        raise ValueError(
            f"The folder {folder!r} holds no dataset of Dataset.save_to_disk. Name one of its files, or save the "
            "dataset."
        ) from None
    if not isinstance(saved, DatasetDict):
        if split is not None:
            raise ValueError(f"{folder!r} holds one dataset, and no split {split!r}. Leave the split out.")
        return named_rows(saved)
    return named_rows(saved[_chosen(folder, split, list(saved))])


def _read_hub(text: str) -> Iterator[dict[str, Any]]:
    from datasets import get_dataset_split_names, load_dataset

    name, *parts = text.split(":")
    split = parts.pop() if parts else None
    config = parts.pop() if parts else None
    try:
        if split is None:
            split = _chosen(name, None, get_dataset_split_names(name, config))
        dataset = load_dataset(name, config, split=split, streaming=True)
    except (OSError, ConnectionError) as error:
        raise FileNotFoundError(
            f"There is no file {text!r}, and the Hub's dataset of that name cannot be opened: {error}"
        ) from error
    return named_rows(dataset)


def _chosen(name: str, split: str | None, splits: Sequence[str]) -> str:
    """The split that is named, or the only one."""
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        raise ValueError(f"{name!r} has the splits {', '.join(splits)}. Name one of them: {name}:{splits[-1]}.")
    return split


def named_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a dataset, with the names of classes in the place of their indices."""
    from datasets import ClassLabel

    classes = {name: kind for name, kind in (dataset.features or {}).items() if isinstance(kind, ClassLabel)}
    for row in dataset.with_format(None):
        named = {
            name: kind.int2str(row[name]) for name, kind in classes.items() if row[name] is not None and row[name] >= 0
        }
        yield {**row, **named}


def _read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(
                    line.decode("utf-8-sig" if number == 1 else "utf-8"),
                    parse_constant=_no_constant,
                    parse_float=_finite,
                    object_pairs_hook=no_key_twice,
                )
                if b"\\ud" in line.lower():  # half a character, which no file in UTF-8 can hold
                    as_json(row).encode("utf-8")
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}, is not JSON: {error}. Each line must be an object."
                ) from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, is {type(row).__name__}. Each line must be an object.")
            yield row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def no_key_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as `object_pairs_hook` gets it. Raises a ValueError where a key occurs twice."""
    twice = key_twice(pairs)
    if twice is not None:
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return dict(pairs)


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(f"{text} is too large to be a number")
    return float(text)


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter=delimiter_of(path))
        try:
            _check_header(path, reader.fieldnames or [])
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}, does not have as many fields as the header, "
                        f"{reader.fieldnames}. Put a field with commas or line breaks in quotes."
                    )
                # A cell that holds nothing is an empty text.
                yield {**row, REASONING: row[REASONING] or None} if REASONING in row else row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}, is not CSV in UTF-8: {error}.") from None


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a header whose names are not those that somebody meant.

    Raises:
        ValueError: a name stands twice or has spaces around it, or the columns are separated by something else.
    """
    for separator, called in ((";", "semicolons"), ("\t", "tabs"), (",", "commas"), ("|", "bars")):
        if len(names) == 1 and separator in names[0]:
            raise ValueError(
                f"{path} has one column, {names[0]!r}, so its columns are separated by {called}. Save a .csv with "
                "commas, and a .tsv with tabs."
            )
    spaced = [name for name in names if name != name.strip()]
    if spaced:
        raise ValueError(f"{path} has spaces around the names of the columns {spaced}. Remove them from the header.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns of the name {twice!r}, and one would be lost. Rename or drop one.")
