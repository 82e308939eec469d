"""Rows in files, JSON Lines or CSV: read one by one, and appended so that a file cut off anywhere can be continued."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

FORMATS = (".jsonl", ".csv")

# So many bytes of what was cut off tell whether it was the beginning of a row.
_TELLING = 24

csv.field_size_limit(2**31 - 1)  # by default a field of more than 128 KiB is an error, and a prompt may be longer


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, as they are needed.

    Args:
        path: JSON Lines (`.jsonl`: an object a line) or CSV (`.csv`: with a header), in UTF-8.

    Raises:
        ValueError: the file has another format, or a line that is not a row. The message names file and line.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    _check_format(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return _read_json_lines(path) if path.suffix == ".jsonl" else _read_csv(path)


class RowWriter:
    """Appends rows to a file, so that whole rows are on the disk after each `write`.

    What a process that was killed left behind the last whole row is removed by the first `write`.

    Args:
        path: JSON Lines or CSV. It is made where it does not exist.

    Attributes:
        rows: how many rows the file holds.
        last: the last of them as it is written in the file, or None.

    Raises:
        ValueError: the file has another format, or holds what is not rows.
        OSError: it cannot be written to.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        _check_format(self.path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {str(self.path.parent)!r} to write {self.path.name} to.")
        self.rows: int = 0
        self.last: dict[str, Any] | None = None
        self._header: list[str] | None = None
        self._cut_off = b""
        size = 0
        if self.path.is_file():
            whole = _whole_json_lines if self.path.suffix == ".jsonl" else _whole_csv_rows
            for row, end in whole(self.path):
                size = end
                if self.path.suffix == ".csv" and self._header is None:
                    self._header = list(row)
                    continue
                self.rows, self.last = self.rows + 1, row
            with self.path.open("rb") as file:
                file.seek(size)
                self._cut_off = file.read()
        self._file = self.path.open("ab")
        self._size = size

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, all at once.

        Raises:
            ValueError: rows that do not fit the columns of a CSV file; or a file that holds anything but rows.
            OSError: the file cannot be written to, as on a full disk. The rows before are whole.
        """
        if not rows:
            return
        text = self._as_json_lines(rows) if self.path.suffix == ".jsonl" else self._as_csv(rows)
        data = text.encode("utf-8")
        start = min(len(self._cut_off), _TELLING)
        if self.rows == 0 and data[:start] != self._cut_off[:start]:
            raise ValueError(f"{self.path} holds something else than rows of these columns. Write to another file.")
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
                "space, and start again: prediction goes on behind them."
            ) from error
        self.rows += len(rows)

    def continues(self, row: Mapping[str, Any]) -> bool:
        """Whether the last row in the file begins with what this one holds."""
        expected = _as_written(row) if self.path.suffix == ".csv" else json.loads(as_json(row))
        return self.last is not None and all(self.last.get(name) == value for name, value in expected.items())

    def _as_json_lines(self, rows: Iterable[Mapping[str, Any]]) -> str:
        return "".join(f"{as_json(row)}\n" for row in rows)

    def _as_csv(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO(newline="")
        names = self._header or list(rows[0])
        # The end of line of the format's standard. With another, a carriage return in a field would not be quoted.
        writer = csv.DictWriter(text, names, lineterminator="\r\n")
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


def _check_format(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise ValueError(f"{str(path)!r} ends in {path.suffix!r}. Rows are read and written as .jsonl or .csv.")


def as_json(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON Lines, without its end."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _as_written(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a CSV row, as reading gives them again."""
    return {
        name: "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in row.items()
    }


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


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(f"{text} is too large for a number")
    return float(text)


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}, has not as many fields as the header, "
                        f"{reader.fieldnames}. Put a field with commas or line breaks in quotes."
                    )
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}, is not CSV in UTF-8: {error}.") from None


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
        reader = csv.reader(lines(file), strict=True)
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
