"""Distributions whose small probabilities are not known, and how much that matters for a prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raft_peft.decisions import check_rule, decide, parameter_of
from raft_peft.distribution import GridDistribution


@dataclass(frozen=True)
class PartialGridDistribution(GridDistribution):
    """Probabilities of the numbers of a grid, as far as a server returned them.

    Attributes:
        log_probs: as in [`GridDistribution`]; -inf, a probability of 0, also for a number that was not returned.
        ceiling: what the probability of each number that was not returned is at most, of shape (batch,): the least of
            the returned probabilities, or 1 minus their sum if that is less.
        rest: what the probability of all these numbers together is at most, of shape (batch,): 1 minus the sum of the
            returned probabilities, those of other tokens included.
    """

    ceiling: torch.Tensor
    rest: torch.Tensor

    @property
    def missing(self) -> torch.Tensor:
        """Whether a number's probability was not returned, and may be above 0, of shape (batch, grid)."""
        return self.log_probs.isneginf() & (self.rest > 0)[:, None]

    def error_bound(self, rule: str = "mean", *, renormalize: bool = False) -> torch.Tensor:
        """How far a prediction is from that of the whole distribution at most.

        The missing numbers have unknown probabilities q, each at most `ceiling` and together at most `rest`. The bound
        of the mean is the greater of the largest and the negated least sum of y q, found by giving the numbers
        furthest from 0 as much as they can have; that is at most the sum of |y| times `ceiling`. Renormalized it is
        the same sum of (y - prediction) q, divided by the probability of the numbers that were returned. For rules
        that choose a number of the grid it is the distance to the furthest number that such q could make the answer.
        The bound of `risk_averse` adds those of the mean and of the standard deviation.

        Args:
            rule: the decision rule, as in `decide`.
            renormalize: whether the mean is that of the renormalized distribution.

        Returns:
            In the unit of the labels, float32, of shape (batch,); 0 where nothing is missing.

        Raises:
            ValueError: there is no such rule.
        """
        check_rule(rule)
        if rule.startswith("risk_averse"):
            return self.error_bound("mean", renormalize=True) + parameter_of(rule)[1] * self._error_bound_of_std()
        predictions = decide(self, rule, renormalize=renormalize).double()
        values = self.values.double()
        if rule == "mean" and not renormalize:
            bound = torch.maximum(self._largest_sum(values), self._largest_sum(-values))
        elif rule == "mean":
            away = values - predictions[:, None]
            bound = torch.maximum(self._largest_sum(away), self._largest_sum(-away)) / self.mass.double()
            # A renormalized mean cannot leave the range of the grid.
            span = values.max() - values.min()
            bound = bound.nan_to_num(nan=span.item(), posinf=span.item()).clamp(max=span)
        elif rule == "mode":
            could_be = self.missing & (self.ceiling >= self.probs.amax(-1))[:, None]
            bound = ((values - predictions[:, None]).abs() * could_be).amax(-1)
        else:
            level = 0.5 if rule == "median" else parameter_of(rule)[1]
            lowest, highest = self._range_of_quantile(level)
            bound = torch.maximum(predictions - lowest, highest - predictions)
        return torch.where(self.missing.any(-1), bound, 0.0).float()

    def _error_bound_of_std(self) -> torch.Tensor:
        """How far the standard deviation is from that of the whole distribution at most, of shape (batch,).

        Let w be the share of the missing numbers on the grid, and D the distance of the furthest of them from the
        mean of the others. The variance lies between (1 - w) times and w D^2 above that of the others.
        """
        values, std = self.values.double(), self.std.double()
        most = torch.minimum(self.ceiling.double() * self.missing.sum(-1), self.rest.double())
        share = most / (self.mass.double() + most)
        means = decide(self, "mean", renormalize=True).double()
        furthest = ((values - means[:, None]).abs() * self.missing).amax(-1)
        upwards = (std.square() + share * furthest.square()).sqrt() - std
        bound = torch.maximum(upwards, std - (1 - share).sqrt() * std)
        # A standard deviation is at most half the range of the grid.
        most_there_is = ((values.max() - values.min()) / 2).item()
        bound = bound.nan_to_num(nan=most_there_is).clamp(max=most_there_is)
        return torch.where(self.missing.any(-1), bound, 0.0).float()

    def _largest_sum(self, gains: torch.Tensor) -> torch.Tensor:
        """The largest sum of gain times q over the missing numbers, of shape (batch,).

        Args:
            gains: of shape (grid,) or (batch, grid).
        """
        gains = torch.where(self.missing, gains, 0.0).clamp(min=0).sort(-1, descending=True).values
        ceiling, rest = self.ceiling.double()[:, None], self.rest.double()[:, None]
        left = rest - ceiling * torch.arange(gains.shape[-1], device=gains.device)
        return (gains * torch.minimum(left.clamp(min=0), ceiling)).sum(-1)

    def _range_of_quantile(self, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The least and the greatest value that the quantile could be, each of shape (batch,)."""
        values, order = self.values.double().sort()
        below = self.probs.double()[:, order].cumsum(-1)
        missing_below = self.missing[:, order].double().cumsum(-1)
        missing_above = missing_below[:, -1:] - missing_below
        ceiling, rest = self.ceiling.double()[:, None], self.rest.double()[:, None]
        added_below, added_above = (
            torch.minimum(ceiling * missing_below, rest),
            torch.minimum(ceiling * missing_above, rest),
        )
        mass = below[:, -1:]
        reached_soonest = below + added_below >= level * (mass + added_below) * (1 - 1e-6)
        reached_latest = below >= level * (mass + added_above) * (1 + 1e-6)
        # Where there is no mass at all, neither a number below those that are missing nor any other is reached.
        reached_soonest &= below + added_below > 0
        reached_latest &= below > 0
        reached_soonest[:, -1] = reached_latest[:, -1] = True
        return values[reached_soonest.int().argmax(-1)], values[reached_latest.int().argmax(-1)]
