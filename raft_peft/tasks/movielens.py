"""MovieLens-1M: how many stars, from 1 to 5, a user gives a movie, read off the user's earlier ratings.

The prompt is in the style of the paper's Table 6, not in its wording, which is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import DatasetDict

from raft_peft.tasks._sampling import (
    SPLIT_SIZES,
    as_dataset,
    check_on_malformed,
    cut_into_splits,
    draw,
    parse_lines,
    read_lines,
    read_stars,
    too_few_rows,
)

GRID = range(1, 6)

PROMPT = (
    "What is the rating that a user gives the following movie measured on a scale of 1 to 5: {movie}. The user's most "
    "recent ratings, from the earliest to the latest: {history}. The rating of {movie} measured on a scale of 1 to 5 "
    "with 1 being the worst and 5 being the best is equal to"
)

# How many of the user's most recent ratings a prompt shows.
HISTORY_LENGTH = 10

_WHERE = "https://grouplens.org/datasets/movielens/1m/"


class Rating(NamedTuple):
    """One line of `ratings.dat`; `time` is in seconds since 1970."""

    user: int
    movie: int
    stars: float
    time: int


def load_movielens(path: str | Path | None = None, *, seed: int = 0, on_malformed: str = "raise") -> DatasetDict:
    """Draw ratings at random, each with the user's most recent ratings before it.

    No user is in two splits: a later rating of the same user would show, in its history, the stars that an earlier
    one asks for. A user's first rating has no history and is not drawn.

    Args:
        path: the folder `ml-1m` with `ratings.dat` and `movies.dat`, as published. It has to be downloaded by hand,
            since the licence does not let others pass the data on.
        seed: of the draw.
        on_malformed: what to do with a line that has the wrong number of fields, a rating other than 1 to 5 stars, an
            id or a time that is not a whole number, or a movie without a title: "raise", or "skip" and log a warning.

    Returns:
        `train` (10,000 rows), `validation` (1,500) and `test` (1,500), of `prompt` and `label`, in stars.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
        ValueError: no path; an unknown policy; a malformed line, under "raise"; too few ratings.
    """
    check_on_malformed(on_malformed)
    if path is None:
        raise ValueError(f"MovieLens-1M must be downloaded by hand. Get it from {_WHERE} and give the folder ml-1m.")
    folder = Path(path)
    for name in ("movies.dat", "ratings.dat"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing. Give the folder ml-1m of {_WHERE}.")
    titles = _read_titles(folder / "movies.dat", on_malformed)
    histories = _read_histories(folder / "ratings.dat", titles, on_malformed)

    users = draw(((str(user), user) for user in histories), len(histories), seed)
    drawn = {
        name: draw(_with_a_history(group, histories), SPLIT_SIZES[name], seed)
        for name, group in cut_into_splits(users).items()
    }
    if any(len(ratings) < SPLIT_SIZES[name] for name, ratings in drawn.items()):
        found = ", ".join(f"{len(ratings):,} {name}" for name, ratings in drawn.items())
        raise too_few_rows(folder, f"{found} ratings that have an earlier one, its users being split")
    return as_dataset(
        {
            name: [_to_row(histories[user], position, titles) for user, position in ratings]
            for name, ratings in drawn.items()
        }
    )


def _read_titles(path: Path, on_malformed: str) -> dict[int, str]:
    def parse(line: bytes) -> tuple[int, str]:
        movie, title, _genres = _fields(line, 3)
        return _whole(movie), title

    return dict(parse_lines(read_lines(path), parse, source=path, on_malformed=on_malformed))


def _read_histories(path: Path, titles: dict[int, str], on_malformed: str) -> dict[int, list[Rating]]:
    """The ratings of each user in the order in which they were given."""

    def parse(line: bytes) -> Rating:
        user, movie, stars, time = _fields(line, 4)
        rating = Rating(_whole(user), _whole(movie), read_stars(stars), _whole(time))
        if rating.movie not in titles:
            raise ValueError(f"movies.dat has no title for the movie {movie}")
        return rating

    histories: dict[int, list[Rating]] = {}
    for rating in parse_lines(read_lines(path), parse, source=path, on_malformed=on_malformed):
        histories.setdefault(rating.user, []).append(rating)
    for ratings in histories.values():
        ratings.sort(key=lambda rating: rating.time)  # stable: within a second, the order of the file
    return histories


def _fields(line: bytes, count: int) -> list[str]:
    fields = line.decode("latin-1").split("::")
    if len(fields) != count:
        raise ValueError(f"it has {len(fields)} fields separated by '::', not {count}")
    return fields


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _with_a_history(users: Sequence[int], histories: dict[int, list[Rating]]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every rating but the users' first, as a key to draw by and its user and position."""
    for user in users:
        for position in range(1, len(histories[user])):
            yield f"{user} {position}", (user, position)


def _to_row(ratings: list[Rating], position: int, titles: dict[int, str]) -> tuple[str, float]:
    earlier = ratings[max(0, position - HISTORY_LENGTH) : position]
    history = ", ".join(f"{titles[rating.movie]}: {rating.stars:.0f}" for rating in earlier)
    rating = ratings[position]
    return PROMPT.format(history=history, movie=titles[rating.movie]), rating.stars
