"""Losses of a batch in which some rows are preferences: two prompts, of which one is to be above the other."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.heads import Head
from raft_peft.losses import BradleyTerry
from raft_peft.messages import warn
from raft_peft.methods.distribution_losses import UNITS, scale_of
from raft_peft.methods.readout import Readout
from raft_peft.methods.row_losses import losses_of
from raft_peft.methods.table import METHODS, MethodSettings

logger = logging.getLogger(__name__)

_SETTINGS = {"preference_beta": "the log-odds for a difference of 1 on the grid", "preference_weight": "a weight"}
# What a batch holds of the labels.
_TARGETS = ("labels", "rating_values", "rating_shares")


def beta_on(grid: NumberGrid) -> float:
    """1 on a grid whose ends are 4 apart, as 1 to 5, and as much on any other scale, in 1 / the unit of the labels."""
    return 1 / scale_of(grid.values)


def weight_on(grid: NumberGrid, settings: MethodSettings) -> float:
    """What a preference counts beside a row with a label: 1 on the grid 1 to 5, and as much on any other scale.

    A squared error is in the squared unit of the labels, CRPS in their unit, and the loss of a preference without one.
    """
    return scale_of(grid.values) ** UNITS.get(settings.method, 0)


def renormalize_for_preferences(settings: MethodSettings, head: Head | None = None) -> None:
    """Set `settings.renormalize` where it is None and the method takes it, and say what it does where it is False.

    Over the whole vocabulary a rejected prompt could fall to 0 by answers off the grid, which the loss would reward.

    Args:
        settings: the method and its options, changed in place.
        head: in place of the method's own.
    """
    takes_it = "renormalize" in METHODS[settings.method].takes and (head is None or head.reads_grid)
    if takes_it and settings.renormalize is None:
        settings.renormalize = True
    elif takes_it and not settings.renormalize:
        warn(
            logger,
            "With `renormalize=False` all that is off the grid counts as 0, so the loss of preferences falls where a "
            "rejected prompt is answered with no number at all. Leave `renormalize` out to train the order of the "
            "numbers alone.",
        )


def resolve_preferences(settings: Any, grid: NumberGrid) -> None:
    """Set `preference_beta` and `preference_weight` where they are None, in place."""
    if settings.preference_beta is None:
        settings.preference_beta = beta_on(grid)
    if settings.preference_weight is None:
        settings.preference_weight = weight_on(grid, settings)


def refuse_settings_without_preferences(settings: Any) -> None:
    """Raise a ValueError for a setting of preferences where no row has one."""
    for name in _SETTINGS:
        if getattr(settings, name) is not None:
            raise ValueError(
                f"`{name}={getattr(settings, name)}` is for rows of `chosen` and `rejected`, and the train dataset "
                "has none. Leave it out."
            )


def check_preference_settings(settings: Any) -> None:
    """Raise a ValueError where `preference_beta` or `preference_weight` is set and no number above 0."""
    for name, meaning in _SETTINGS.items():
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}={value}` is {meaning}. Use a number above 0, or leave it out.")


def check_preferences(settings: MethodSettings, name: str) -> None:
    """Raise a ValueError where a method makes no number through which a preference could be learned.

    Args:
        settings: the method and its options.
        name: of the dataset, for messages.
    """
    method = METHODS[settings.method]
    sampled = settings.num_samples is not None
    if method.reads_text or sampled:
        with_samples = f" with `num_samples={settings.num_samples}`" if sampled else ""
        raise ValueError(
            f"The {name} dataset has preferences, `chosen` and `rejected`, whose loss is of the expected number. "
            f"Method {settings.method!r}{with_samples} reads or trains on text or samples, which give it no gradient. "
            "Set `method` to raft, crps or another that reads an expectation"
            + (", or leave `num_samples` out." if sampled else ".")
        )


def refuse_losses_without_labels(settings: MethodSettings, loss: Any) -> None:
    """Raise a ValueError for a loss of labels where all rows are preferences.

    Args:
        settings: the method and its options.
        loss: of the user's own, if any.
    """
    name = "loss" if loss is not None else f"distribution_loss={settings.distribution_loss!r}"
    if loss is not None or settings.distribution_loss is not None:
        raise ValueError(
            f"`{name}` is of labels, and the train dataset has none: all of its rows are preferences, `chosen` and "
            "`rejected`. Leave it out, or add rows with a label."
        )


@dataclass(frozen=True)
class PreferenceLosses:
    """The loss of each prompt of a batch, by its label, or as the chosen one of a pair.

    Attributes:
        readout: the method at work.
        loss: of rows with a label; None for the squared error.
        of_pair: of two predictions.
    """

    readout: Readout
    loss: Any
    of_pair: BradleyTerry

    def of_labels(self, output: GridDistribution | torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The losses of the prompts with a label, and 0 of the others, of shape (prompts,).

        Args:
            output: of the head, see [`HeadOutput`].
            batch: of [`RegressionCollator`], with `pair`.
        """
        numbers = output.log_probs if isinstance(output, GridDistribution) else output
        labelled = (batch["pair"] == 0).nonzero().squeeze(-1).to(numbers.device)
        losses = torch.zeros(len(batch["pair"]), device=numbers.device)
        if not len(labelled):
            return losses
        some = {name: batch[name].to(numbers.device)[labelled] for name in _TARGETS if name in batch}
        found = losses_of(
            GridDistribution(numbers[labelled], output.values)
            if isinstance(output, GridDistribution)
            else output[labelled],
            some["labels"],
            loss=self.loss,
            readout=self.readout,
            ratings=(some["rating_values"], some["rating_shares"]) if "rating_values" in some else None,
        )
        return losses.index_put((labelled,), found.float())

    def of_pairs(self, expected: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The losses of the pairs at their chosen prompts, and 0 at the others, of shape (prompts,).

        Args:
            expected: the predictions, of shape (prompts,).
            batch: with `pair` and `margins`, in which a rejected prompt follows the chosen one.
        """
        chosen = (batch["pair"] > 0).nonzero().squeeze(-1).to(expected.device)
        margins = batch["margins"].to(expected.device)[chosen]
        found = self.of_pair(expected[chosen], expected[chosen + 1], margins)
        return torch.zeros_like(expected, dtype=torch.float32).index_put((chosen,), found)
