"""The loss of each answer to a typed question: numbers by a method of the paper, choices by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses import SoftCrossEntropy
from raft_peft.methods.answers import replace_settings
from raft_peft.methods.distribution_losses import UNITS, resolve_distribution_weight, scale_of
from raft_peft.methods.readout import Readout
from raft_peft.methods.row_losses import losses_of
from raft_peft.methods.table import METHODS, MethodSettings


class AnswerLosses:
    """The losses of a batch of questions.

    A squared error is in the squared unit of its question, and questions have other units each: a score of three
    levels, a probability, a number up to 100. So errors are divided by a quarter of the distance between the ends of a
    question's values. This is 1 for five levels, and the balance of the losses is that of one grid.

    Args:
        settings: of `settings_for_answers`.
        readout: which reads the answers.
    """

    def __init__(self, settings: MethodSettings, readout: Readout):
        self._readout = readout
        self._settings = settings
        self._loss_of_values = lru_cache(maxsize=256)(self._loss_of)

    def __call__(self, distribution: GridDistribution, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each question, of shape (questions,).

        Args:
            distribution: over the options, as [`AnswerReadout`] gives it.
            batch: `option_values`, for a choice their places; `is_choice`, of shape (questions,); and the targets:
                `labels`, their means, and `rating_values` and `rating_shares`, of shape (questions, ratings).
        """
        device = distribution.log_probs.device
        tensors = {
            name: batch[name].to(device)
            for name in ("option_values", "is_choice", "labels", "rating_values", "rating_shares")
        }
        # Questions with the same options are computed together.
        keys = torch.cat([tensors["option_values"].nan_to_num(torch.inf), tensors["is_choice"].float()[:, None]], 1)
        kinds, kind_of = torch.unique(keys, dim=0, return_inverse=True)
        losses = distribution.log_probs.new_zeros(len(keys))
        for kind, (*values, is_choice) in enumerate(kinds.tolist()):
            rows = (kind_of == kind).nonzero().flatten()
            own = tuple(value for value in values if value != torch.inf)
            loss, scale = (SoftCrossEntropy(), 1.0) if is_choice else self._loss_of_values(own)
            numbers = torch.tensor(own, dtype=torch.float32, device=device)
            found = losses_of(
                GridDistribution(distribution.log_probs[rows, : len(own)], numbers),
                tensors["labels"][rows],
                loss=loss,
                readout=self._readout,
                ratings=(tensors["rating_values"][rows], tensors["rating_shares"][rows]),
            )
            losses = losses.index_put((rows,), found / scale)
        return losses

    def _loss_of(self, values: tuple[float, ...]) -> tuple[Any, float]:
        """The loss of a question with these values, and what it is divided by."""
        settings = replace_settings(self._settings)
        resolve_distribution_weight(settings, values)
        loss: Any = METHODS[settings.method].loss
        return loss(settings), scale_of(values) ** UNITS.get(settings.method, 0)
