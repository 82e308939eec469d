"""Labels that are distributions: the ratings of several raters for one row, or the shares of its values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from raft_peft.data.prompts import rows_error
from raft_peft.grid import NumberGrid, meant_number, number_text

# Shares with three decimals may miss 1 by this much, and a little more in floating point.
_TOLERANCE = 1.001e-3


@dataclass(frozen=True)
class Ratings:
    """What several raters said of one row.

    >>> Ratings.of([3, 4, 4, 5])
    Ratings(values=(3.0, 4.0, 5.0), shares=(0.25, 0.5, 0.25), count=4)
    >>> Ratings.of({"3": 0.5, "5": 0.5}).mean
    4.0

    Attributes:
        values: the different ratings, from the least, in the unit of the labels.
        shares: the share of each, above 0; together they are 1.
        count: the number of raters; None where only the shares are known.
    """

    values: tuple[float, ...]
    shares: tuple[float, ...]
    count: int | None = None

    @classmethod
    def of(cls, raw: Any, number: Callable[[Any], float] = meant_number) -> Ratings:
        """Read a label that is a list of ratings, or a mapping of values to shares.

        Args:
            raw: a list, tuple, array or tensor of one dimension; or a mapping, in which None stands for no share.
            number: makes a float of a rating, or of a key of the mapping that is not the text of a number.

        Raises:
            ValueError: there is no rating, something is not a finite number, a share is negative, or the shares do
                not sum to 1.
        """
        return cls._of_shares(raw, number) if isinstance(raw, Mapping) else cls._of_list(list(raw), number)

    @classmethod
    def _of_list(cls, ratings: list[Any], number: Callable[[Any], float]) -> Ratings:
        if not ratings:
            raise ValueError("the label is an empty list of ratings. Drop the row.")
        counts: defaultdict[float, int] = defaultdict(int)
        for rating in ratings:
            if is_ratings(rating):
                raise ValueError(
                    f"the label holds {rating!r:.80} as a rating. Write all ratings of a row in one list."
                )
            counts[_finite(rating, number)] += 1
        values = sorted(counts)
        return cls(tuple(values), tuple(counts[value] / len(ratings) for value in values), len(ratings))

    @classmethod
    def _of_shares(cls, raw: Mapping[Any, Any], number: Callable[[Any], float]) -> Ratings:
        shares: defaultdict[float, float] = defaultdict(float)
        for key, raw_share in raw.items():
            if raw_share is None:
                continue
            share = _share(key, raw_share)
            shares[_finite(key, lambda text: _number_of_key(text, number))] += share
        if not shares:
            raise ValueError("the label is an empty mapping of shares. Drop the row.")
        total = math.fsum(shares.values())
        if abs(total - 1) > _TOLERANCE:
            raise ValueError(
                f"the label is {dict(raw)!r:.80}, whose shares sum to {total:.6g} and not to 1. Divide each by their "
                "sum; or write counts as a list of ratings, such as [3, 4, 4]."
            )
        values = sorted(value for value, share in shares.items() if share > 0)
        return cls(tuple(values), tuple(shares[value] / total for value in values))

    @property
    def mean(self) -> float:
        """The mean of the ratings."""
        # The number of each rating is a whole number, with which the mean is exact where it can be.
        count = self.count
        weights = self.shares if count is None else [round(share * count) for share in self.shares]
        return fmean(self.values, weights)


def is_ratings(raw: Any) -> bool:
    """Whether a label is a list of ratings or a mapping of shares, and not one number."""
    if isinstance(raw, Mapping) or getattr(raw, "ndim", 0) > 0:
        return True
    return isinstance(raw, Sequence) and not isinstance(raw, str | bytes | bytearray)


def as_one_number(label: Any) -> Any:
    """A label that is ratings as their mean, and any other as it is.

    Raises:
        ValueError: it is a list or a mapping that holds no ratings.
    """
    return Ratings.of(label).mean if is_ratings(label) else label


def check_ratings_within(ratings: Sequence[Ratings | None], grid: NumberGrid, first_row: int = 0) -> None:
    """Raise a ValueError that names the rows of which a rating lies outside the grid's range.

    Args:
        ratings: of each row; None for a row whose label is one number.
        grid: the numbers that the model may answer with.
        first_row: the number of the first row in its dataset, for error messages.
    """
    low, high = min(grid.values), max(grid.values)
    outside = [
        (
            row,
            f"the rating {number_text(one.values[0] if one.values[0] < low else one.values[-1])} lies outside "
            f"{number_text(low)} to {number_text(high)}, the range of the grid, beyond which this loss is not "
            "defined. Scale the ratings, or widen the grid.",
        )
        for row, one in enumerate(ratings, first_row)
        if one is not None and not low <= one.values[0] <= one.values[-1] <= high
    ]
    if outside:
        raise rows_error(outside)


def weights_of(ratings: Sequence[Ratings | None], first_row: int = 0) -> list[float]:
    """The number of raters of each row, 1 of a row whose label is one number.

    Raises:
        ValueError: there are shares, of how many raters is not known. The message names the rows.
    """
    without = [row for row, one in enumerate(ratings, first_row) if one is not None and one.count is None]
    if without:
        reason = (
            "the label is a mapping of shares, which does not tell the number of raters by which "
            "`weight_by_ratings=True` weighs a row. Write the ratings as a list, or leave `weight_by_ratings` off."
        )
        raise rows_error([(row, reason) for row in without])
    return [1.0 if one is None or one.count is None else float(one.count) for one in ratings]


def padded_ratings(
    values: Sequence[Sequence[float]], shares: Sequence[Sequence[float]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ratings of rows and their shares, float32, of shape (rows, ratings), filled up with shares of 0.

    Args:
        values: the ratings of each row; of a label that is one number, this alone.
        shares: of these.
    """
    most = max(map(len, values))
    # The padding repeats a rating of the row, since 0 may lie outside the grid.
    rows = [[*row, *[row[0]] * (most - len(row))] for row in values]
    parts = [[*row, *[0.0] * (most - len(row))] for row in shares]
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(parts, dtype=torch.float32)


def rating_tensors(labels: Sequence[float], ratings: Sequence[Ratings | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as the ratings and shares that a proper loss takes, as `padded_ratings` gives them.

    Args:
        labels: of each row, of ratings their mean.
        ratings: of each row; None for a row whose label is one number.
    """
    rated = [(label,) if one is None else one.values for label, one in zip(labels, ratings, strict=True)]
    return padded_ratings(rated, [(1.0,) if one is None else one.shares for one in ratings])


def of_one_kind(labels: Sequence[Any]) -> list[Any]:
    """Labels as a column of a table can hold them, where some are ratings.

    Among lists of ratings, a number is a list of one rating, and among mappings of shares it has the share 1. The
    keys of a mapping are texts.
    """
    if any(isinstance(label, Mapping) for label in labels):
        return [_as_mapping(label) for label in labels]
    if any(is_ratings(label) for label in labels):
        return [[label] if _is_number(label) else label for label in labels]
    return list(labels)


def _as_mapping(label: Any) -> Any:
    if isinstance(label, Mapping):
        return {key if isinstance(key, str) else number_text(key): share for key, share in label.items()}
    return {number_text(label): 1.0} if _is_number(label) else label


def _is_number(label: Any) -> bool:
    return isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label)


def _finite(rating: Any, number: Callable[[Any], float]) -> float:
    value = number(rating)
    if not math.isfinite(value):
        raise ValueError(f"a rating is {value}. Drop it or repair it.")
    return value


def _share(key: Any, raw: Any) -> float:
    try:
        share = math.nan if isinstance(raw, bool | str) else float(raw)
    except (TypeError, ValueError):
        share = math.nan
    if not (math.isfinite(share) and share >= 0):
        raise ValueError(
            f"the label has the share {raw!r:.80} of the rating {key!r}. A share is a number from 0 to 1."
        )
    return share


def _number_of_key(key: Any, number: Callable[[Any], float]) -> float:
    """JSON writes the number 3 as the key "3"."""
    if isinstance(key, str):
        try:
            return float(key)
        except ValueError:
            pass
    return number(key)
