"""Decision rules: from a distribution over the grid to one number, most of them the minimiser of an expected loss.

| rule           | minimises the expected                                                    |
|----------------|---------------------------------------------------------------------------|
| `mean`         | squared error                                                             |
| `median`       | absolute error                                                            |
| `mode`         | 0-1 loss                                                                  |
| `quantile:0.9` | pinball loss at the level 0.9: above the truth nine times out of ten      |

`risk_averse:0.5` is the mean less half a standard deviation. Of two items with the same mean, the one that the model
is surer of ranks first. It minimises no expected loss.

The mean is over the whole vocabulary unless it is renormalized: whatever is not on the grid counts as 0, as in the
paper. The other rules speak of the distribution given that the answer is on the grid.
"""

from __future__ import annotations

import math

import torch

from raft_peft.distribution import GridDistribution


def mean(distribution: GridDistribution, *, renormalize: bool = False) -> torch.Tensor:
    """The expectation sum over y of y p(str(y) | x), the Bayes rule of squared error (RAIL, the paper's eq. 5).

    Args:
        distribution: probabilities over the whole vocabulary.
        renormalize: divide them by their sum over the grid first (the paper's Table 16).

    Returns:
        One number a row in the unit of the labels, float32, of shape (batch,).
    """
    if renormalize:
        distribution = distribution.renormalized()
    return (distribution.probs * distribution.values).sum(-1)


def quantile(distribution: GridDistribution, level: float) -> torch.Tensor:
    """The smallest grid value whose cumulative probability on the grid reaches the level, of shape (batch,)."""
    return distribution.quantile(level)


def median(distribution: GridDistribution) -> torch.Tensor:
    """The quantile at one half, the Bayes rule of absolute error, of shape (batch,)."""
    return quantile(distribution, 0.5)


def mode(distribution: GridDistribution) -> torch.Tensor:
    """The most probable grid value, the Bayes rule of 0-1 loss, of shape (batch,)."""
    values = distribution.values[distribution.log_probs.argmax(-1)]
    # A model that has diverged gives NaN, which must not look like a number.
    return values.masked_fill(distribution.log_probs.isnan().any(-1), torch.nan)


def risk_averse(distribution: GridDistribution, aversion: float) -> torch.Tensor:
    """The mean less `aversion` times the standard deviation, both on the grid, of shape (batch,).

    It may lie below the grid: half 1 and half 5 is 3 - 2 = 1 at an aversion of 1, and -1 at 2.

    Args:
        distribution: probabilities over the whole vocabulary; they are renormalized.
        aversion: above 0; how many standard deviations the mean is lowered by.

    Raises:
        ValueError: the aversion is not a finite number above 0.
    """
    if not 0 < aversion < math.inf:
        raise ValueError(f"An aversion to risk is a finite number above 0, got {aversion}.")
    return mean(distribution, renormalize=True) - aversion * distribution.std


def decide(distribution: GridDistribution, rule: str, *, renormalize: bool = False) -> torch.Tensor:
    """Apply a rule by its name, as in the table above; `renormalize` concerns the mean alone.

    Raises:
        ValueError: there is no such rule.
    """
    if rule == "mean":
        return mean(distribution, renormalize=renormalize)
    if rule == "median":
        return median(distribution)
    if rule == "mode":
        return mode(distribution)
    name, number = parameter_of(rule)
    return quantile(distribution, number) if name == "quantile" else risk_averse(distribution, number)


def check_rule(rule: str) -> None:
    """Raise a ValueError where there is no rule of this name."""
    if rule not in ("mean", "median", "mode"):
        parameter_of(rule)


def chooses_from_grid(rule: str) -> bool:
    """Whether the rule gives numbers of the grid alone, and not numbers in between."""
    return rule != "mean" and not rule.startswith("risk_averse")


def parameter_of(rule: str) -> tuple[str, float]:
    """The name and the number of a rule with a number, such as `quantile:0.9`.

    Raises:
        ValueError: it is no such rule.
    """
    name, _, text = rule.partition(":")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if (name == "quantile" and 0 < number < 1) or (name == "risk_averse" and 0 < number < math.inf):
        return name, number
    raise ValueError(
        f"There is no decision rule {rule!r}. Use mean, median, mode, a quantile such as quantile:0.9, or "
        "risk_averse:0.5, the mean less half a standard deviation."
    )
