"""Sets of options that hold the true one as often as promised: conformal prediction where no number is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raft_peft.prediction.calibrating.intervals.conformal import ROUNDING, rank_of


@dataclass(frozen=True)
class TrueOptions:
    """How probable held-out rows' true options were to the model.

    A set is all options of at least a probability t, and the likeliest one. This is split conformal prediction with
    the score 1 - p(true option) (LAC, Sadinle, Lei and Wasserman, JASA 2019). A target may also be shares of several
    options, as of several raters. The share of the target that lies in the set then takes the place of "the option is
    in it" (conformal risk control, Angelopoulos et al., ICLR 2024): where the rows to come are exchangeable with the
    held-out ones, an option that is drawn by the shares of its row lies in the row's set with a probability of at
    least `level`. With one option a row both are the same.

    Attributes:
        probabilities: of the options that have a share, given the options of the question, from the greatest.
        shares: of each of these in the target of its row.
        rows: how many rows these are.
    """

    probabilities: tuple[float, ...]
    shares: tuple[float, ...]
    rows: int

    @classmethod
    def of(cls, probabilities: np.ndarray, shares: np.ndarray) -> TrueOptions:
        """Those of held-out rows.

        Args:
            probabilities: of the options, which sum to 1, of shape (rows, options).
            shares: the targets, which sum to 1, of the same shape.
        """
        of_options, parts = probabilities[shares > 0], shares[shares > 0]
        order = np.argsort(-of_options, kind="stable")
        return cls(tuple(of_options[order].tolist()), tuple(parts[order].tolist()), len(shares))

    @classmethod
    def read(cls, read: Any) -> TrueOptions:
        """Those that a file holds.

        Raises:
            ValueError: it holds none. The message says what is wrong.
        """
        parts: Any = read if isinstance(read, Mapping) else {}
        probabilities, shares, rows = (parts.get(name) for name in ("probabilities", "shares", "rows"))
        for name, numbers in (("probabilities", probabilities), ("shares", shares)):
            if not isinstance(numbers, list) or not numbers or not all(map(_is_probability, numbers)):
                raise ValueError(f"its {name} are not a list of numbers from 0 to 1")
        if len(shares) != len(probabilities):
            raise ValueError(f"it has {len(probabilities)} probabilities and {len(shares)} shares")
        if probabilities != sorted(probabilities, reverse=True):
            raise ValueError("its probabilities do not fall from the first to the last")
        if isinstance(rows, bool) or not isinstance(rows, int) or abs(sum(shares) - rows) > ROUNDING * rows:
            raise ValueError(f"its shares sum to {sum(shares):.6g}, and not to the number of its rows, {rows!r}")
        return cls(tuple(map(float, probabilities)), tuple(map(float, shares)), rows)

    def least_probability(self, level: float, of: str = "") -> float:
        """The probability t from which on an option is in its set.

        The greatest t for which the held-out options of at least this probability have (rows + 1) x level of the
        shares.

        Args:
            level: the share of targets to be covered, between 0 and 1.
            of: which rows these are, for the message, see `rank_of`.

        Raises:
            ValueError: the level is not between 0 and 1, or higher than so few rows can warrant.
        """
        rank_of(level, self.rows, of)
        last = np.searchsorted(np.cumsum(self.shares), (self.rows + 1) * level - ROUNDING)
        # The sum of all shares may be rounded to less than the rows.
        return self.probabilities[min(int(last), len(self.probabilities) - 1)]

    def sets(self, probabilities: np.ndarray, level: float, of: str = "") -> np.ndarray:
        """Which options lie in the set of each row, of shape (rows, options). No set is empty.

        Args:
            probabilities: of the options, which sum to 1, of the same shape. Where they are NaN all options are in.
            level, of: as in `least_probability`.
        """
        inside = ~(probabilities < self.least_probability(level, of) * (1 - ROUNDING))
        # A set with none is of no use, and one option more can only cover more.
        inside[np.arange(len(inside)), probabilities.argmax(1)] = True
        return inside


def _is_probability(number: Any) -> bool:
    return not isinstance(number, bool) and isinstance(number, int | float) and 0 <= number <= 1 + ROUNDING
