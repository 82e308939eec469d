"""A batch of questions, read for their losses in training, or for their answers in an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch

from raft_peft.losses.label_shares import mean_two_hot
from raft_peft.methods.answer_losses import AnswerLosses
from raft_peft.methods.answers import AnswerReadout
from raft_peft.methods.readout import HeadOutput
from raft_peft.methods.table import MethodSettings
from raft_peft.training.batch_reading import BatchReader

# Fills up the questions of a row that has fewer than another.
NO_QUESTION = -1


class AnswersRead(TypedDict):
    """What is read of an evaluation's rows, each of shape (rows, questions) or (rows, questions, options).

    Where a row has fewer questions than another, `question` is -1.

    Attributes:
        predictions: the expected values, or the places of the likeliest options.
        log_probs: of the options, in nats, -inf on padding, of shape (rows, questions, options).
        option_values: of shape (rows, questions, options); NaN on padding.
        question: a number for its id, see `id_number`.
        losses, shares: where there are targets: the loss, and the target as shares of the options, of shape (rows,
            questions, options).
    """

    predictions: Any
    log_probs: Any
    option_values: Any
    question: Any
    losses: Any
    shares: Any


class QuestionReader(BatchReader):
    """Reads batches of a [`QuestionCollator`].

    Args:
        readout: of questions.
        settings: with which they are trained.
        router_losses: as for [`BatchReader`].
    """

    readout: AnswerReadout

    def __init__(self, readout: AnswerReadout, settings: MethodSettings, *, router_losses: bool):
        super().__init__(readout, None, router_losses=router_losses)
        self.answer_losses = AnswerLosses(settings, readout) if settings.method != "rail" else None

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[HeadOutput, torch.Tensor | None]:
        """The distributions over the options, and the loss of each question, of shape (questions,)."""
        options = {"unwrapped": self._unwrapped(model), **self._options}
        head = self.readout.read_head(model, batch, **options)
        output: Any = head.output
        if "labels" not in batch or self.answer_losses is None:
            return head, None
        return head, self.answer_losses(output, batch)

    def rows(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Any:
        """What [`AnswersRead`] holds, of shape (questions,) or (questions, options)."""
        with torch.no_grad():
            head, losses = self.losses(model, batch)
            reading = self.readout.read(head, model, batch)
        distribution: Any = reading.distribution
        device = distribution.log_probs.device
        read = {
            "predictions": reading.predictions,
            "log_probs": distribution.log_probs,
            **{name: batch[name].to(device) for name in ("option_values", "question", "row", "place")},
        }
        if "labels" in batch:
            read["shares"] = target_shares(batch).to(device)
            read["losses"] = torch.zeros_like(reading.predictions) if losses is None else losses
        return read


def target_shares(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The targets of a batch as shares of the options of their questions, of shape (questions, options)."""
    shares = torch.zeros_like(batch["option_values"])
    for row, values in enumerate(batch["option_values"]):
        own = values[~values.isnan()]
        found = mean_two_hot(batch["rating_values"][row, None], batch["rating_shares"][row, None], own)
        shares[row, : len(own)] = found[0]
    return shares


def by_row(read: Mapping[str, torch.Tensor], rows: int, places: int, options: int) -> dict[str, torch.Tensor]:
    """From questions one below the other to those of each row, of shape (rows, places) and (rows, places, options).

    All batches of an evaluation get the same shape but for the rows.
    """
    fills = {"question": NO_QUESTION, "log_probs": -torch.inf, "option_values": torch.nan}
    found = {}
    for name, values in read.items():
        if name in ("row", "place"):
            continue
        of_options = values.dim() == 2
        whole = values.new_full((rows, places, options) if of_options else (rows, places), fills.get(name, 0))
        if of_options:
            whole[read["row"], read["place"], : values.shape[1]] = values
        else:
            whole[read["row"], read["place"]] = values
        found[name] = whole
    return found
