"""Losses of the distribution beside a method's own, so that more than the mean is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from raft_peft import losses

if TYPE_CHECKING:
    from raft_peft.methods.table import MethodSettings

# The weight that the distance has beside cross-entropy in the paper of the number token loss.
NUMBER_TOKEN_WEIGHT = 0.3

# The power of the labels' unit in which a loss is measured, where it has one.
UNITS = {
    **dict.fromkeys(("raft", "mbr", "learnable_raft", "special_token", "logits_mlp", "pooled"), 2),
    "probability_projection": 2,
    "crps": 1,
}

# The cross-entropy is over the whole vocabulary. The others do not see what is off the grid.
DISTRIBUTION_LOSSES: dict[str, Callable[[MethodSettings], losses.DistributionLoss | losses.LossSum]] = {
    "crps": lambda settings: losses.LossSum(((losses.CRPS(), 1.0), (losses.GridMass(), 1.0))),
    "soft_ce": lambda settings: losses.SoftCrossEntropy(settings.label_smoothing),
    "rps": lambda settings: losses.LossSum(((losses.RankedProbabilityScore(), 1.0), (losses.GridMass(), 1.0))),
}


def with_distribution_loss(own: Callable[[MethodSettings], Any]) -> Callable[[MethodSettings], Any]:
    """How the loss of a method is made where `distribution_loss` may be added to it."""

    def loss_of(settings: MethodSettings) -> Any:
        if settings.distribution_loss is None:
            return own(settings)
        added = DISTRIBUTION_LOSSES[settings.distribution_loss](settings)
        weight = 1.0 if settings.distribution_weight is None else settings.distribution_weight
        return losses.LossSum(((own(settings), 1.0), (added, weight)))

    return loss_of


def number_token_loss(settings: MethodSettings) -> losses.LossSum:
    """Cross-entropy and the distance from the label (Zausinger et al., "Regress, Don't Guess", ICML 2025)."""
    weight = NUMBER_TOKEN_WEIGHT if settings.distribution_weight is None else settings.distribution_weight
    return losses.LossSum(((losses.SoftCrossEntropy(), 1.0), (losses.WassersteinDistance(), weight)))


def check_distribution_loss(settings: MethodSettings) -> None:
    """Raise a ValueError for settings of the loss that do not go together."""
    if settings.distribution_loss == settings.method:
        raise ValueError(
            f"`distribution_loss={settings.distribution_loss!r}` is the loss of method {settings.method!r} already. "
            "Leave it out, or add another one."
        )
    if settings.distribution_weight is not None:
        if settings.distribution_loss is None and settings.method != "number_token_loss":
            raise ValueError(
                f"`distribution_weight={settings.distribution_weight}` is the weight of a `distribution_loss`, and "
                "there is none. Set it to crps, soft_ce or rps, or leave the weight out."
            )
        if not (math.isfinite(settings.distribution_weight) and settings.distribution_weight > 0):
            raise ValueError(f"`distribution_weight={settings.distribution_weight}` must be a number above 0.")
    if settings.label_smoothing:
        if "soft_ce" not in (settings.method, settings.distribution_loss):
            raise ValueError(
                f"`label_smoothing={settings.label_smoothing}` does nothing without the loss soft_ce. Set "
                "`distribution_loss='soft_ce'` or `method='soft_ce'`, or leave it at 0."
            )
        if not (math.isfinite(settings.label_smoothing) and settings.label_smoothing > 0):
            raise ValueError(f"`label_smoothing={settings.label_smoothing}` is a standard deviation. Use 0 or more.")


def resolve_distribution_weight(settings: MethodSettings, values: Sequence[float]) -> None:
    """Set `settings.distribution_weight` where it is None and there is a `distribution_loss`.

    A squared error is in the squared unit of the labels, CRPS in their unit, soft_ce and rps are without a unit. So
    on a grid whose ends are 4 s apart, as 1 to 5 for s = 1, the weight is s to the power by which the units differ.
    The balance of the two losses is then the same on any scale.

    Args:
        settings: changed in place.
        values: the numbers of the grid.
    """
    if settings.distribution_loss is None or settings.distribution_weight is not None or len(values) < 2:
        return
    power = UNITS.get(settings.method, 0) - UNITS.get(settings.distribution_loss, 0)
    settings.distribution_weight = scale_of(values) ** power


def scale_of(values: Sequence[float]) -> float:
    """A quarter of the distance between the ends of a grid, 1 for the grid 1 to 5, in the unit of the labels.

    Errors divided by it are balanced alike on any scale. It is 1 for a grid of one number.
    """
    return (max(values) - min(values)) / 4 if len(values) > 1 else 1.0
