"""Whether probabilities are divided by their sum over the grid, where the settings leave it open."""

from __future__ import annotations

import logging

from raft_peft.grid import NumberGrid, number_text
from raft_peft.heads import Head
from raft_peft.messages import warn
from raft_peft.methods.table import METHODS, MethodSettings

logger = logging.getLogger(__name__)


def lies_around_zero(grid: NumberGrid) -> bool:
    """Whether a grid has numbers below and above 0, so that 0 is an answer in its middle and not at its end.

    Over the whole vocabulary, what is off the grid counts as 0. Beside numbers of one sign that is the end of what can
    be predicted, as with the paper's 1 to 5. Between numbers of both signs it draws every prediction to the middle.
    """
    return min(grid.values) < 0 < max(grid.values)


def renormalizes(settings: MethodSettings, grid: NumberGrid, head: Head | None = None) -> bool:
    """Whether a method divides the probabilities by their sum over the grid.

    As set; else where the method's loss asks for it, or the grid lies around 0.

    Args:
        settings: the method and its options.
        grid: the numbers that the model answers with.
        head: in place of the method's own.
    """
    if settings.renormalize is not None:
        return settings.renormalize
    method = METHODS[settings.method]
    takes_it = "renormalize" in method.takes and (head is None or head.reads_grid)
    return takes_it and (lies_around_zero(grid) or method.renormalizes)


def resolve_renormalize(settings: MethodSettings, grid: NumberGrid, head: Head | None = None) -> None:
    """Set `settings.renormalize` where it is None, and say so where that is not the paper's way.

    Args:
        settings: the method and its options, changed in place.
        grid, head: as for `renormalizes`.
    """
    if settings.renormalize is not None:
        return
    settings.renormalize = renormalizes(settings, grid, head)
    if settings.renormalize and not METHODS[settings.method].renormalizes:
        low, high = number_text(min(grid.values)), number_text(max(grid.values))
        warn(
            logger,
            f"The grid has numbers below and above 0, {low} to {high}, so its probabilities are divided by their sum. "
            "For those over the whole vocabulary, where all else counts as 0, set `renormalize=False`.",
        )
