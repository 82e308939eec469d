"""MovieLens-1M: how many stars, from 1 to 5, a user gives a movie, read off the user's earlier ratings.

The prompt is that of the paper's Table 6, which follows Luo et al. (2024). The paper leaves open how the history is
written, how long it is, and which ratings are in which split. Here the history is `title: stars` of the user's ten
most recent ratings, from the earliest to the latest, separated by commas; the candidate is its title.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import DatasetDict

from raft_peft.tasks._sampling import (
    as_dataset,
    check_on_malformed,
    check_sizes,
    cut_into_splits,
    draw,
    parse_lines,
    read_lines,
    read_stars,
    too_few_rows,
)

GRID = range(1, 6)

# The paper's sizes (its Table 7), 82 % of the 1,000,209 ratings.
SPLIT_SIZES = {"train": 797_758, "validation": 10_145, "test": 10_145}

SPLIT_BY = ("rating", "user")

PROMPT = (
    "Instruction: Predict the rating of a target movie based on the user's historical movie ratings. Rating History: "
    "{history} Candidate Item: {movie}. Output:"
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


def load_movielens(
    path: str | Path | None = None,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] = SPLIT_SIZES,
    split_by: str = "rating",
    on_malformed: str = "raise",
) -> DatasetDict:
    """Draw ratings at random, each with the user's most recent ratings before it.

    A user's first rating has no history and is not drawn. Split by rating, a later rating of a user shows, in its
    history, the stars that an earlier one asks for, and the two may be in different splits. Split by user, no user is
    in two splits, so nothing leaks.

    Args:
        path: the folder `ml-1m` with `ratings.dat` and `movies.dat`, as published. It has to be downloaded by hand,
            since the licence does not let others pass the data on.
        seed: of the draw.
        sizes: the rows of each split.
        split_by: "rating", where each rating is drawn by itself, or "user".
        on_malformed: what to do with a line that has the wrong number of fields, a rating other than 1 to 5 stars, an
            id or a time that is not a whole number, or a movie without a title: "raise", or "skip" and log a warning.

    Returns:
        `train` (by default 797,758 rows), `validation` (10,145) and `test` (10,145), of `prompt` and `label`, in
        stars.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
        ValueError: no path; an unknown policy or way to split; a malformed line, under "raise"; too few ratings.
    """
    check_on_malformed(on_malformed)
    check_sizes(sizes)
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by is {split_by!r}. It must be 'rating' or 'user'.")
    if path is None:
        raise ValueError(f"MovieLens-1M must be downloaded by hand. Get it from {_WHERE} and give the folder ml-1m.")
    folder = Path(path)
    for name in ("movies.dat", "ratings.dat"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing. Give the folder ml-1m of {_WHERE}.")
    titles = _read_titles(folder / "movies.dat", on_malformed)
    histories = _read_histories(folder / "ratings.dat", titles, on_malformed)

    if split_by == "user":
        drawn = _split_by_user(histories, sizes, seed)
    else:
        rows = sum(sizes.values())
        drawn = cut_into_splits(draw(_with_a_history(histories, histories), rows, seed), sizes)
    if any(len(ratings) < sizes[name] for name, ratings in drawn.items()):
        found = ", ".join(f"{len(ratings):,} {name}" for name, ratings in drawn.items())
        raise too_few_rows(folder, f"{found} ratings that have an earlier one, split by {split_by}", sizes)
    return as_dataset(
        {
            name: (_to_row(histories[user], position, titles) for user, position in ratings)
            for name, ratings in drawn.items()
        }
    )


def _split_by_user(
    histories: dict[int, list[Rating]], sizes: Mapping[str, int], seed: int
) -> dict[str, Sequence[tuple[int, int]]]:
    """For the smallest split first, as many users as it takes, and of their ratings as many as are wanted."""
    users = iter(draw(((str(user), user) for user in histories), len(histories), seed))
    drawn: dict[str, Sequence[tuple[int, int]]] = dict.fromkeys(sizes, ())
    for name in sorted(sizes, key=lambda name: sizes[name]):
        group: list[int] = []
        ratings = 0
        while ratings < sizes[name] and (user := next(users, None)) is not None:
            group.append(user)
            ratings += len(histories[user]) - 1
        drawn[name] = draw(_with_a_history(group, histories), sizes[name], seed)
    return drawn


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


def _with_a_history(users: Iterable[int], histories: dict[int, list[Rating]]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every rating but the users' first, as a key to draw by and its user and position."""
    for user in users:
        for position in range(1, len(histories[user])):
            yield f"{user} {position}", (user, position)


def _to_row(ratings: list[Rating], position: int, titles: dict[int, str]) -> tuple[str, float]:
    earlier = ratings[max(0, position - HISTORY_LENGTH) : position]
    history = ", ".join(f"{titles[rating.movie]}: {rating.stars:.0f}" for rating in earlier)
    rating = ratings[position]
    return PROMPT.format(history=history, movie=titles[rating.movie]), rating.stars
