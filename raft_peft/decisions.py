"""Decision rules: from a distribution over the grid to one number, the minimiser of an expected loss.

| rule           | minimises the expected                                                    |
|----------------|---------------------------------------------------------------------------|
| `mean`         | squared error                                                             |
| `median`       | absolute error                                                            |
| `mode`         | 0-1 loss                                                                  |
| `quantile:0.9` | pinball loss at the level 0.9: above the truth nine times out of ten      |

The mean is over the whole vocabulary unless it is renormalised: whatever is not on the grid counts as 0, as in the
paper. The other rules speak of the distribution given that the answer is on the grid.
"""

from __future__ import annotations

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
    if not 0 < level < 1:
        raise ValueError(f"A quantile's level is between 0 and 1, got {level}.")
    values, order = distribution.values.sort()
    cumulative = distribution.renormalized().probs[:, order].double().cumsum(-1)
    # The roundings of float32 probabilities below the level, so that 0.3 + 0.2 reaches 0.5.
    reached = cumulative >= level * (1 - 1e-6)
    reached[:, -1] = True
    return _unless_nan(distribution, values[reached.int().argmax(-1)])


def median(distribution: GridDistribution) -> torch.Tensor:
    """The quantile at one half, the Bayes rule of absolute error, of shape (batch,)."""
    return quantile(distribution, 0.5)


def mode(distribution: GridDistribution) -> torch.Tensor:
    """The most probable grid value, the Bayes rule of 0-1 loss, of shape (batch,)."""
    return _unless_nan(distribution, distribution.values[distribution.log_probs.argmax(-1)])


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
    return quantile(distribution, _level(rule))


def check_rule(rule: str) -> None:
    """Raise a ValueError where there is no rule of this name."""
    if rule not in ("mean", "median", "mode"):
        _level(rule)


def _unless_nan(distribution: GridDistribution, numbers: torch.Tensor) -> torch.Tensor:
    """NaN where the distribution is, as of a model that has diverged; no rule may hide it."""
    return numbers.masked_fill(distribution.log_probs.isnan().any(-1), torch.nan)


def _level(rule: str) -> float:
    name, _, level = rule.partition(":")
    try:
        if name == "quantile" and 0 < float(level) < 1:
            return float(level)
    except ValueError:
        pass
    raise ValueError(
        f"There is no decision rule {rule!r}. Use mean, median, mode, or a quantile such as quantile:0.9."
    )
