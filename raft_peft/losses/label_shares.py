"""Labels as distributions over the grid: what a proper loss compares a model's distribution with."""

from __future__ import annotations

import torch


def two_hot(target: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The weight of a label shared by its two neighbours on the grid, each by its nearness.

    The mean of the shares is the label. A label on the grid has all of it at its own number, and one beyond the grid
    at the end that is nearest.

    Args:
        target: labels of shape (batch,).
        values: the numbers of the grid, two or more, in any order, of shape (grid,).

    Returns:
        Shares that sum to 1, float32, of shape (batch, grid), in the order of `values`.
    """
    ordered, order = values.float().sort()
    target = target.float().clamp(ordered[0], ordered[-1])
    above = torch.searchsorted(ordered, target).clamp(1, len(ordered) - 1)
    below = above - 1
    share_above = (target - ordered[below]) / (ordered[above] - ordered[below])
    shares = torch.zeros(len(target), len(ordered), device=target.device)
    shares.scatter_(1, order[below].unsqueeze(-1), (1 - share_above).unsqueeze(-1))
    return shares.scatter_(1, order[above].unsqueeze(-1), share_above.unsqueeze(-1))


def mean_two_hot(ratings: torch.Tensor, shares: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The distribution of several ratings a row over the grid, each rating as `two_hot`.

    Args:
        ratings: of shape (batch, ratings).
        shares: of each rating in its row, which sum to 1, of the same shape.
        values: the numbers of the grid, of shape (grid,).

    Returns:
        Shares of shape (batch, grid).
    """
    each = two_hot(ratings.flatten(), values).view(*ratings.shape, len(values))
    return (each * shares.unsqueeze(-1)).sum(1)


def beyond_grid(target: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How far labels are beyond the ends of the grid, in their unit, of their shape; 0 within it."""
    return (values.min() - target).clamp(min=0) + (target - values.max()).clamp(min=0)


def mean_beyond_grid(ratings: torch.Tensor, shares: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How far several ratings a row are beyond the ends of the grid on average, of shape (batch,).

    Args:
        ratings, shares, values: as in `mean_two_hot`.
    """
    return (beyond_grid(ratings, values) * shares).sum(1)


def gaussian(target: torch.Tensor, values: torch.Tensor, deviation: float) -> torch.Tensor:
    """A Gaussian about each label, as shares of the grid (HL-Gauss, Imani and White, ICML 2018).

    A number's share is the probability of what is nearer to it than to any other number, within a grid that reaches
    half a gap beyond its ends; all are divided by their sum. The mean of the shares is only near to the label.

    Args:
        target: labels of shape (batch,).
        values: the numbers of the grid, two or more, in any order, of shape (grid,).
        deviation: the Gaussian's standard deviation, in the unit of the labels.

    Returns:
        Shares that sum to 1, float32, of shape (batch, grid), in the order of `values`.
    """
    ordered, order = values.double().sort()
    target = target.double().clamp(ordered[0], ordered[-1])
    middles = (ordered[1:] + ordered[:-1]) / 2
    ends = (ordered[:1] * 1.5 - ordered[1:2] / 2, ordered[-1:] * 1.5 - ordered[-2:-1] / 2)
    edges = torch.cat([ends[0], middles, ends[1]])
    below = torch.special.ndtr((edges - target.unsqueeze(-1)) / deviation)
    shares = below.diff(dim=-1)
    shares = shares / shares.sum(-1, keepdim=True)
    return torch.empty_like(shares).scatter_(1, order.expand_as(shares), shares).float()
