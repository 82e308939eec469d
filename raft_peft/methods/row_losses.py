"""The loss of each row, by what a head made of a batch and by its labels."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses import DistributionLoss, Loss, LossSum, squared_error
from raft_peft.methods.readout import Readout


def losses_of(
    output: GridDistribution | torch.Tensor,
    labels: torch.Tensor,
    *,
    loss: Loss | DistributionLoss | LossSum | None,
    readout: Readout,
    ratings: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The loss of each row by a head's output, of shape (batch,).

    Args:
        output: a distribution over the grid, or one number a row, of shape (batch,).
        labels: of shape (batch,), on any device.
        loss: of the distribution, or of the number that it stands for; None for the squared error of the number.
        readout: the method at work.
        ratings: where labels are several ratings, these and their shares, both of shape (batch, ratings). A loss of
            the distribution is the mean over them, one of the number is that of `labels`, their mean.

    Raises:
        ValueError: the loss reads a distribution and there is none, it gives another shape than one value a row, or
            the method's loss is over the target's text and the rows have none.
    """
    if loss is None and readout.method.trains_text:
        raise ValueError("The rows have no target text to take the cross-entropy of. Pass them with their labels.")
    if isinstance(loss, LossSum):
        parts = [
            weight * losses_of(output, labels, loss=part, readout=readout, ratings=ratings)
            for part, weight in loss.parts
        ]
        return torch.stack(parts).sum(0)
    labels = labels.to(output.log_probs.device if isinstance(output, GridDistribution) else output.device)
    if isinstance(loss, DistributionLoss):
        if not isinstance(output, GridDistribution):
            raise ValueError(
                f"{type(loss).__name__} reads a distribution, and {type(readout.head).__name__} gives one number a "
                "row. Use a loss of the prediction, or a head that gives a GridDistribution."
            )
        losses = loss(output, labels) if ratings is None else _mean_over_ratings(loss, output, *ratings)
    else:
        losses = (loss or squared_error)(readout.expectation(output), labels)
    if losses.shape != labels.shape:
        raise ValueError(
            f"The loss gives the shape {tuple(losses.shape)} for a batch of {len(labels)}; it must give one "
            "value an example, not reduced: with torch's losses, reduction='none'."
        )
    return losses


def _mean_over_ratings(
    loss: DistributionLoss, distribution: GridDistribution, ratings: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """The loss of each rating, times its share, as one sum a row, of shape (batch,)."""
    rows, number = ratings.shape
    repeated = GridDistribution(distribution.log_probs.repeat_interleave(number, dim=0), distribution.values)
    device = distribution.log_probs.device
    losses = loss(repeated, ratings.to(device).flatten()).view(rows, number)
    return (losses * shares.to(device)).sum(-1)
