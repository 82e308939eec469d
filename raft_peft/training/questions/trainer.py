"""`QuestionTrainer`: what `RegressionAwareTrainer` is for rows of typed questions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from raft_peft.data.questions.collator import QuestionCollator
from raft_peft.distribution import GridDistribution
from raft_peft.forward.model import attach_reading
from raft_peft.grid import NumberGrid
from raft_peft.heads import Head
from raft_peft.methods.answers import AnswerReadout, check_answers, settings_for_answers
from raft_peft.methods.saved_folder import RaftConfig
from raft_peft.metrics import Evaluation
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.questions.datasets import QuestionDatasets
from raft_peft.training.questions.evaluation import metrics_of
from raft_peft.training.questions.reading import QuestionReader, by_row
from raft_peft.training.trainer import RegressionAwareTrainer

# The metrics of a question that the model card shows.
_KEPT = ("_rmse", "_pearson", "_qwk", "_accuracy", "_auc", "_nll", "_label_mass", "_calibration_error")


class QuestionTrainer(RegressionAwareTrainer):
    """A `RegressionAwareTrainer` for rows of `state`, `questions` and `targets`.

    It is made by `RegressionAwareTrainer(...)` where the rows have questions. A batch is so many rows, and the loss is
    a mean over all of their questions.

    Raises:
        ValueError: a grid, a head, a loss or a setting that is for rows with one number.
    """

    shares_prompts = True
    _datasets: QuestionDatasets
    _reader: QuestionReader

    def __init__(self, *args: Any, compute_metrics: Any = None, **kwargs: Any):
        if compute_metrics is not None:
            raise ValueError(
                "`compute_metrics` gets one number a row, and these rows have several questions. Leave it out; "
                "`evaluate` returns the metrics of each question."
            )
        super().__init__(*args, **kwargs)

    def _settle_method(self, args: RegressionAwareConfig, grid: Any, head: Head | None, loss: Any) -> Any:
        for name, value in (("grid", grid), ("head", head), ("loss", loss)):
            if value is not None:
                raise ValueError(
                    f"`{name}` is for rows of `prompt` and `label`, and these rows have typed `questions`, each with "
                    "options of its own. Leave it out."
                )
        check_answers(args)
        settings = settings_for_answers(args)
        args.renormalize, args.distribution_loss = settings.renormalize, settings.distribution_loss
        # Nothing reads it: the questions bring their options along.
        self.grid = NumberGrid([0, 1])
        return None

    def _make_datasets(self, args: RegressionAwareConfig, loss: Any) -> QuestionDatasets:
        return QuestionDatasets(args)

    def _make_collator(self, pad_token_id: int, multiple: int | None) -> QuestionCollator:
        return QuestionCollator(
            pad_token_id=pad_token_id, pad_to_multiple_of=multiple, weights=self._datasets.question_weights
        )

    def _attach_readout(self, head: Head | None, loss: Any) -> None:
        attach_reading(self.model)
        self.readout = AnswerReadout(self.model, self._tokenizer, self.args, padding_free=bool(self.args.padding_free))
        self._reader = QuestionReader(
            self.readout, settings_for_answers(self.args), router_losses=self.aux_loss_enabled
        )
        # Only whether there is one is asked of it.
        self._loss: Any = self._reader.answer_losses

    def _note_batch(
        self,
        batch: dict[str, torch.Tensor],
        losses: torch.Tensor,
        distribution: GridDistribution | None,
        predictions: torch.Tensor | None,
    ) -> None:
        # Predictions of several questions are numbers of several scales.
        super()._note_batch(batch, losses, distribution, None)

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Any, torch.Tensor | None]:
        """What is read of a batch's questions, and the means of their targets, by rows; see [`AnswersRead`]."""
        _, flat, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        read: Any = dict(flat)
        if labels is not None:
            read["labels"] = labels.to(read["row"].device)
        rows = int(inputs["row"].max()) + 1
        found = by_row(read, rows, self._datasets.most_questions, self._datasets.most_options)
        return None, found, found.pop("labels", None)

    def _compute_metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        return metrics_of(evaluated.predictions, evaluated.label_ids, self._datasets.questions)

    def _remember(self, output: EvalLoopOutput, dataloader: DataLoader, metric_key_prefix: str) -> None:
        prefix = f"{metric_key_prefix}_"
        ids = [question_id for question_id, _ in self._datasets.questions.values()]
        # Of each question, or of each type where their questions differ from row to row.
        metrics = {name.removeprefix(prefix): value for name, value in output.metrics.items()}
        of_ids = {name: value for name, value in metrics.items() if name.startswith(tuple(f"{one}_" for one in ids))}
        kept = {name: metrics[name] for name in metrics if name.endswith(_KEPT) and (name in of_ids or not of_ids)}
        kept["macro_nll"] = metrics["macro_nll"]
        asked = output.predictions["question"] >= 0
        self.evaluations.pop(metric_key_prefix, None)
        self.evaluations[metric_key_prefix] = Evaluation(
            output.predictions["predictions"][asked], output.label_ids[asked], kept, self._step_of_weights, None
        )

    def _predicted(self, output: PredictionOutput) -> PredictionOutput:
        return output

    def _raft_config(self) -> RaftConfig:
        return replace(
            super()._raft_config(), values=[], texts=[], token_ids=None, token_texts=None, **self._datasets.saved()
        )
