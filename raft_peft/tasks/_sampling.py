"""From the lines of a large file to the paper's splits: reading, the policy for malformed lines, drawing."""

from __future__ import annotations

import gzip
import hashlib
import heapq
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from datasets import Dataset, DatasetDict, concatenate_datasets

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Rows of `prompt` and `label` before they become a dataset.
Row = tuple[str, float]

SPLITS = ("train", "validation", "test")

_GZIP_MAGIC = b"\x1f\x8b"
_LINES_SHOWN = 5
_ROWS_AT_ONCE = 10_000


def check_on_malformed(on_malformed: str) -> None:
    """Raise a ValueError unless the policy is "raise" or "skip"."""
    if on_malformed not in ("raise", "skip"):
        raise ValueError(
            f"on_malformed is {on_malformed!r}. It must be 'raise', to stop at a malformed line, or 'skip', to leave "
            "such lines out."
        )


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, gzipped or not, one at a time and without their line ends.

    Only a line feed ends a line, since texts in the wild hold every other separator. Lines stay bytes, so that one
    that cannot be decoded does not stop the reading of the next.

    Raises:
        ValueError: the file is gzipped, and broken off or damaged.
    """
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    with gzip.open(path) if is_gzip else path.open("rb") as file:
        try:
            for line in file:
                yield line.rstrip(b"\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged or incomplete ({error}). Download it again.") from error


def parse_lines(
    lines: Iterable[bytes], parse: Callable[[bytes], T], *, source: str | Path, on_malformed: str, first_line: int = 1
) -> Iterator[T]:
    """Parse one line at a time; blank lines are passed over.

    Args:
        lines: as `read_lines` gives them.
        parse: from a line to what it holds. Its ValueErrors say why a line is malformed.
        source: the name of the file, for messages.
        on_malformed: "raise" stops at the first malformed line; "skip" leaves such lines out and logs one warning, at
            the end, with how many there were and where the first of them are.
        first_line: the number of the first line in its file.

    Raises:
        ValueError: a line is malformed and the policy is "raise". The message names file, line, reason and cure.
    """
    skipped: list[int] = []
    count = 0
    for number, line in enumerate(lines, first_line):
        if not line:
            continue
        try:
            parsed = parse(line)
        except ValueError as error:
            if on_malformed == "raise":
                raise ValueError(
                    f"{source}, line {number}: {error}. Repair the line, or pass on_malformed='skip' to leave "
                    "malformed lines out."
                ) from error
            count += 1
            skipped += [number] if count <= _LINES_SHOWN else []
            continue
        yield parsed
    if count:
        more = f" and {count - len(skipped)} more" if count > len(skipped) else ""
        logger.warning("Skipped %d malformed line(s) of %s: %s%s.", count, source, ", ".join(map(str, skipped)), more)


def read_stars(value: object) -> float:
    """A rating of 1, 2, 3, 4 or 5 stars, from a number or its text.

    Raises:
        ValueError: it is something else.
    """
    try:
        stars = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        stars = float("nan")
    if isinstance(value, bool) or stars not in range(1, 6):
        raise ValueError(f"the rating {value!r} is not 1, 2, 3, 4 or 5")
    return stars


def draw(items: Iterable[tuple[str, T]], count: int, seed: int) -> list[T]:
    """Draw items at random in one pass, keeping no more than `count` of them in memory.

    Every key has a random place that depends on the key and the seed alone, and the first places win. So the same keys
    are drawn whatever the order of the items, and an item that comes twice is drawn once at most.

    Args:
        items: pairs of a key and the item. Of several items with the same key, the first counts.
        count: how many to draw.
        seed: of the draw.

    Returns:
        The items in random order; all that have distinct keys, where these are fewer than `count`.
    """
    seed_bytes = str(seed).encode()
    first_places: list[tuple[int, T]] = []  # a heap with the last of the places on top, which is why they are negated
    taken: set[int] = set()
    for key, item in items:
        digest = hashlib.blake2b(key.encode(), digest_size=8, key=seed_bytes).digest()
        place = -int.from_bytes(digest)
        if place in taken:
            continue
        if len(first_places) < count:
            heapq.heappush(first_places, (place, item))
        elif first_places and place > first_places[0][0]:
            dropped, _ = heapq.heapreplace(first_places, (place, item))
            taken.remove(dropped)
        else:
            continue
        taken.add(place)
    return [item for _, item in sorted(first_places, key=lambda entry: -entry[0])]


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise a ValueError unless there is a size of 1 or more for each split, and for nothing else."""
    if set(sizes) != set(SPLITS) or not all(isinstance(size, int) and size >= 1 for size in sizes.values()):
        raise ValueError(
            f"sizes is {dict(sizes)!r}. It must give the rows of each split, 1 or more: "
            "{'train': 1_000, 'validation': 100, 'test': 100}."
        )


def cut_into_splits(rows: Sequence[T], sizes: Mapping[str, int]) -> dict[str, Sequence[T]]:
    """Rows in random order as consecutive pieces of these sizes."""
    pieces, start = {}, 0
    for name, size in sizes.items():
        pieces[name] = rows[start : start + size]
        start += size
    return pieces


def too_few_rows(source: str | Path, found: str, sizes: Mapping[str, int]) -> ValueError:
    """The error for a file that cannot fill the splits; `found` says what it has."""
    wanted = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    return ValueError(
        f"{source} has {found}, too few for the splits of {wanted} rows. Give the whole file, or smaller splits: "
        "sizes={'train': ..., 'validation': ..., 'test': ...}."
    )


def as_dataset(splits: Mapping[str, Iterable[Row]]) -> DatasetDict:
    """Splits of rows as datasets of `prompt` and `label`, made piece by piece as the rows are given."""
    return DatasetDict({name: _joined(rows) for name, rows in splits.items()})


def _joined(rows: Iterable[Row]) -> Dataset:
    rest, pieces = iter(rows), []
    while piece := list(islice(rest, _ROWS_AT_ONCE)):
        prompts, labels = zip(*piece, strict=True)
        pieces.append(Dataset.from_dict({"prompt": prompts, "label": labels}))
    return concatenate_datasets(pieces)
