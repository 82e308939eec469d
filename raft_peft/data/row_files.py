"""Rows that are appended to a file, so that one that was cut off anywhere can be continued."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from raft_peft.data.made_by import MadeBy

# A file of Parquet cannot be appended to.
TARGET_FORMATS = (".jsonl", ".csv", ".tsv")

# So many bytes of what was cut off tell whether it was the beginning of a row.
_TELLING = 24

csv.field_size_limit(2**31 - 1)  # by default a field of more than 128 KiB is an error, and a prompt may be longer


class RowWriter:
    """Appends rows to a file, so that whole rows are on the disk after each `write`.

    What a process that was killed left behind the last whole row is removed by the first `write`. A file has one
    writer at a time, and a note beside it of what made its rows, see [`MadeBy`]. A new file that holds no row when an
    error ends the `with` block is removed.

    Args:
        path: JSON Lines, CSV or TSV. It is made where it does not exist.
        made_by: what makes the rows, by names. Rows that something else made are not continued. None where it does
            not matter.

    Attributes:
        rows: how many rows the file holds.
        last: the last of them as it is written in the file, or None.

    Raises:
        ValueError: the file has another format, holds what is not rows, or rows that something else made.
        OSError: it cannot be written to, or is being written by another.
    """

    def __init__(self, path: str | Path, made_by: Mapping[str, Any] | None = None):
        self.path = Path(path)
        check_target(self.path)
        self.rows: int = 0
        self.last: dict[str, Any] | None = None
        self._header: list[str] | None = None
        self._cut_off = b""
        self._size = 0
        self._owned = MadeBy(self.path)
        try:
            self._find_end()
            if made_by is not None and self.rows:
                self._owned.check(made_by)
            self._is_new = not self.path.exists()
            self._file = self.path.open("ab")
            self._owned.write(made_by, keep=made_by is None and self.rows > 0)
        except BaseException:
            self._owned.release()
            raise

    def _find_end(self) -> None:
        """Count the whole rows, and find where they end."""
        if not self.path.is_file():
            return
        for row, end in self._whole_rows():
            self._size = end
            if is_table(self.path) and self._header is None:
                self._header = list(row)
                continue
            self.rows, self.last = self.rows + 1, row
        with self.path.open("rb") as file:
            file.seek(self._size)
            self._cut_off = file.read()

    def _whole_rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        return (_whole_csv_rows if is_table(self.path) else _whole_json_lines)(self.path)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, all at once.

        Raises:
            ValueError: rows that do not fit the columns of a CSV file; or a file that holds anything but rows.
            OSError: the file cannot be written to, as on a full disk. The rows before are whole.
        """
        if not rows:
            return
        text = self._as_csv(rows) if is_table(self.path) else self._as_json_lines(rows)
        data = text.encode("utf-8")
        start = min(len(self._cut_off), _TELLING)
        if self.rows == 0 and data[:start] != self._cut_off[:start]:
            raise ValueError(f"{self.path} does not hold rows with these columns. Write to another file.")
        try:
            if self._cut_off:
                self._file.truncate(self._size)
                self._cut_off = b""
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            raise OSError(
                f"{str(self.path)!r} could not be written: {error.strerror or error}. It holds {self.rows} rows. Free "
                "space, and start again: prediction continues after them."
            ) from error
        self.rows += len(rows)

    def begins_with(self, rows: Iterator[Mapping[str, Any]]) -> int:
        """How many of the file's rows hold what these hold, one after the other, before the first that does not.

        Args:
            rows: as many are taken from it as the file has, or as there are up to the first that differs.
        """
        header = 1 if is_table(self.path) else 0
        for number, (written, _) in enumerate(itertools.islice(self._whole_rows(), header, None)):
            row = next(rows, None)
            if row is None or not self._holds(written, row):
                return number
        return self.rows

    def _holds(self, written: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        expected = _as_written(row) if is_table(self.path) else json.loads(as_json(row))
        return all(name in written and written[name] == value for name, value in expected.items())

    def _as_json_lines(self, rows: Iterable[Mapping[str, Any]]) -> str:
        return "".join(f"{as_json(row)}\n" for row in rows)

    def _as_csv(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO(newline="")
        names = self._header or list(rows[0])
        # The end of line of the format's standard. With another, a carriage return in a field would not be quoted.
        writer = csv.DictWriter(text, names, lineterminator="\r\n", delimiter=delimiter_of(self.path))
        if self._header is None:
            writer.writeheader()
            self._header = names
        for row in rows:
            if list(row) != names:
                raise ValueError(
                    f"{self.path} has the columns {names}, and a row the columns {list(row)}. Write to a new file, or "
                    "to .jsonl, where rows may differ."
                )
            writer.writerow(_as_written(row))
        return text.getvalue()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # what could not be written was said by `write`
            self._file.close()
        if error is not None and self._is_new and self.rows == 0:
            self.path.unlink(missing_ok=True)
            self._owned.forget()
        self._owned.release()


def check_target(path: Path) -> None:
    """Refuse a file to which no rows can be written.

    Raises:
        ValueError: it has another format.
        FileNotFoundError: there is no folder for it.
    """
    if path.suffix not in TARGET_FORMATS:
        raise ValueError(
            f"{str(path)!r} ends in {path.suffix!r}. Rows are appended to .jsonl, .csv or .tsv, from which "
            "datasets.load_dataset makes any other format."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name} to.")


def is_table(path: Path) -> bool:
    """Whether a file of rows is a table of text with a header, .csv or .tsv."""
    return path.suffix in (".csv", ".tsv")


def delimiter_of(path: Path) -> str:
    """What separates the columns of a table of text, .csv or .tsv."""
    return "\t" if path.suffix == ".tsv" else ","


def as_json(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON Lines, without its end."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _as_written(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a CSV row, as reading gives them again."""
    return {
        name: "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in row.items()
    }


def _whole_json_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each whole row, and where it ends, in bytes."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, is not a row of predictions. Write to another file.")
            yield row, end


def _whole_csv_rows(path: Path) -> Iterator[tuple[dict[str, str], int]]:
    """The header as a row of itself and each whole row, and where it ends, in bytes."""
    consumed = 0
    whole = True

    def lines(file: Iterable[bytes]) -> Iterator[str]:
        nonlocal consumed, whole
        for line in file:
            consumed += len(line)
            whole = line.endswith(b"\n")
            yield line.decode("utf-8", errors="replace")

    with path.open("rb") as file:
        reader = csv.reader(lines(file), strict=True, delimiter=delimiter_of(path))
        header: list[str] | None = None
        try:
            for fields in reader:
                if not whole:
                    return
                header = header or fields
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}, does not fit the header. Write to another file."
                    )
                yield dict(zip(header, fields, strict=True)), consumed
        except csv.Error as error:
            if consumed < path.stat().st_size:
                raise ValueError(
                    f"{path}, line {reader.line_num}, is not CSV: {error}. Write to another file."
                ) from None
            return  # a field in quotes that was cut off


def key_twice(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first key that occurs twice in one object of JSON, as `object_pairs_hook` gets it; None where none does."""
    names = [name for name, _ in pairs]
    return next((name for name in names if names.count(name) > 1), None) if len({*names}) < len(names) else None
