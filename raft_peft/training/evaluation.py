"""An evaluation in training: what is read of its rows, the metrics of that, and what is said and shown of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
import pandas
import torch
from transformers import EvalPrediction, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from raft_peft.distribution import GridDistribution
from raft_peft.grid import number_text
from raft_peft.losses.label_shares import mean_beyond_grid, mean_two_hot
from raft_peft.messages import warn
from raft_peft.methods.preference_losses import PreferenceLosses
from raft_peft.methods.readout import Reading, Readout
from raft_peft.metrics import (
    DISTRIBUTION_METRICS,
    Evaluation,
    RowDistributions,
    grid_metrics,
    pair_metrics,
    qwk,
    rail_metrics,
    regression_metrics,
)
from raft_peft.training.config import RegressionAwareConfig

logger = logging.getLogger(__name__)

# An evaluation is remembered by these metrics, while those of a user's own are only logged.
_KEPT_METRICS = (
    *("rmse", "mae", "pearson", "spearman", "kendall", "qwk", "r2", "rmse_of_mean"),
    *(*DISTRIBUTION_METRICS, "grid_mass", "entropy"),
    *("pair_accuracy", "pair_margin", "pair_loss"),
)
# Below this mean probability of the grid, predictions are all near 0 whatever the prompt.
_SMALL_MASS = 0.5
# A table shows the ends of prompts, since they begin with the rubric or the template, which is the same in all rows.
_LAST_LETTERS = 500
_NUMBERS_SHOWN = 5

Array = TypeVar("Array", torch.Tensor, np.ndarray)


class RowsRead(TypedDict, Generic[Array]):
    """What is read of an evaluation's rows: tensors for one batch, NumPy arrays once `Trainer` has gathered them all.

    Attributes:
        predictions: one number a row in the unit of the labels, of shape (rows,).
        log_probs: of the grid's numbers, in nats, of shape (rows, grid), where the head gives a distribution.
        parsed: where numbers were parsed from texts, the share of each row's texts that hold one, of shape (rows,).
        rail: beside parsed numbers, the expectations over the grid, of shape (rows,).
        losses: of shape (rows,), where the rows have labels.
        label_shares: each label, or its ratings, as shares of the grid, of shape (rows, grid), where there are labels
            and `log_probs`.
        expected: of a batch with preferences, the numbers that the loss is taken of, of shape (prompts,).
        rejected: of rows of preferences, the numbers of the rejected prompts, beside those of the chosen ones in
            `predictions`; NaN for a row with a label, of shape (rows,).
        rated, beyond: beside `label_shares`, whether a row has ratings, and how far its label is beyond the grid, in
            the unit of the labels, each of shape (rows,).
        reasoning_nll, reasoning_tokens: where rows have reasonings, the negative log-likelihood of these in nats, and
            their tokens, each of shape (rows,).
    """

    predictions: Array
    log_probs: NotRequired[Array]
    parsed: NotRequired[Array]
    rail: NotRequired[Array]
    losses: NotRequired[Array]
    label_shares: NotRequired[Array]
    rated: NotRequired[Array]
    beyond: NotRequired[Array]
    reasoning_nll: NotRequired[Array]
    reasoning_tokens: NotRequired[Array]
    expected: NotRequired[Array]
    rejected: NotRequired[Array]


def rows_read(
    reading: Reading,
    readout: Readout,
    losses: torch.Tensor | None,
    batch: Mapping[str, torch.Tensor],
    tail_log_probs: torch.Tensor | None = None,
) -> RowsRead[torch.Tensor]:
    """What an evaluation keeps of a batch that was read, and of the losses of its rows where they have labels."""
    rows: RowsRead[torch.Tensor] = {"predictions": reading.predictions}
    if reading.distribution is not None:
        rows["log_probs"] = reading.distribution.log_probs
        if reading.parsed is not None:
            rows["parsed"] = reading.parsed
            rows["rail"] = readout.expectation(reading.distribution)
        if "labels" in batch and len(reading.distribution.values) > 1:
            found = _shares_of_labels(batch, reading.distribution.values.detach())
            rows["label_shares"], rows["rated"], rows["beyond"] = found
    if losses is not None:
        rows["losses"] = losses
    if tail_log_probs is not None:
        rows["reasoning_nll"] = -tail_log_probs.sum(-1)
        rows["reasoning_tokens"] = batch["reasoning_mask"].sum(-1).to(tail_log_probs.device)
    if "pair" in batch:
        output = reading.predictions if reading.distribution is None else reading.distribution
        rows["expected"] = readout.expectation(output)
    return rows


def by_pairs(
    read: RowsRead[torch.Tensor], batch: Mapping[str, torch.Tensor], preferences: PreferenceLosses
) -> RowsRead[torch.Tensor]:
    """What was read of the prompts of a batch with preferences, as what was read of its rows.

    Args:
        read: of the prompts, with the losses of those that have a label.
        batch: with `pair`, in which a rejected prompt follows the chosen one.
        preferences: which give the losses of pairs.
    """
    whole: dict[str, torch.Tensor] = dict(read)  # type: ignore[arg-type]
    numbers = whole["predictions"]
    pair = batch["pair"].to(numbers.device)
    whole["losses"] = whole["losses"] + preferences.of_pairs(whole.pop("expected"), batch)
    # The last prompt is never the chosen one of a pair, so what comes round to it is not taken.
    whole["rejected"] = torch.where(pair > 0, numbers.roll(-1), torch.nan)
    rows: Any = {name: values[pair >= 0] for name, values in whole.items()}
    return rows


def with_labels(read: RowsRead[np.ndarray], labels: np.ndarray) -> tuple[RowsRead[np.ndarray], np.ndarray]:
    """What was read of the rows with a label, and their labels: of all rows, but for preferences."""
    if "rejected" not in read:
        return read, labels
    labelled = ~np.isnan(labels)
    some: Any = {name: values[labelled] for name, values in read.items() if name != "rejected"}  # type: ignore[index]
    return some, labels[labelled]


def _shares_of_labels(
    batch: Mapping[str, torch.Tensor], values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The labels of a batch as shares of the grid, which of them are several ratings, and how far they are beyond."""
    if "rating_values" in batch:
        ratings, shares = batch["rating_values"].to(values.device), batch["rating_shares"].to(values.device)
    else:
        ratings = batch["labels"].to(values.device).unsqueeze(-1)
        shares = torch.ones_like(ratings)
    # A plain number stands among rows with ratings as one rating.
    rated = ((shares > 0).sum(-1) > 1).float()
    return mean_two_hot(ratings, shares, values), rated, mean_beyond_grid(ratings, shares, values)


class RegressionPredictionOutput(PredictionOutput):
    """What `predict` returns: a `PredictionOutput` of three fields, with the distribution as an attribute.

    Attributes:
        predictions: one number a row, of shape (rows,), in the order of the dataset and the unit of the labels.
        label_ids: the labels, of shape (rows,), or None where the dataset has none.
        metrics: the metrics, where the dataset has labels.
        distribution: the probabilities of the grid behind each number, over the whole vocabulary; None where the
            method gives a number alone.
        rail: where the numbers were parsed from text, the expectations over the grid beside them, of shape (rows,).
        rejected: of rows of preferences, the numbers of the rejected prompts beside those of the chosen ones, NaN for
            a row with a label, of shape (rows,); None without preferences.
        label_shares: the labels as shares of the distribution's numbers, each rating by itself, of shape (rows, grid);
            None without labels or a distribution.
    """

    distribution: GridDistribution | None
    rail: np.ndarray | None
    label_shares: np.ndarray | None
    rejected: np.ndarray | None

    @classmethod
    def of(cls, output: PredictionOutput, values: torch.Tensor) -> RegressionPredictionOutput:
        """From what `Trainer.predict` returns, whose predictions are `RowsRead`, over the numbers of a grid."""
        read: RowsRead[np.ndarray] = output.predictions
        result = cls(read["predictions"], output.label_ids, output.metrics)
        result.distribution, result.rail, result.label_shares = None, read.get("rail"), read.get("label_shares")
        result.rejected = read.get("rejected")
        if "log_probs" in read:
            result.distribution = GridDistribution(torch.from_numpy(read["log_probs"]), values)
        return result


def metrics_of(evaluated: EvalPrediction, readout: Readout) -> dict[str, float]:
    """The metrics of an evaluation's rows, by name.

    Args:
        evaluated: whose `predictions` are `RowsRead` and whose `label_ids` are of shape (rows,).
        readout: which read the rows.
    """
    whole: RowsRead[np.ndarray] = evaluated.predictions
    metrics = {"loss": float(whole["losses"].mean())}
    read, labels = with_labels(whole, evaluated.label_ids)
    # Where a head's probabilities sum to 1 over the grid by themselves, its mass says nothing of the model.
    if "log_probs" in whole and not readout.head.sums_to_one:
        metrics |= grid_metrics(whole["log_probs"])
    if "rejected" in whole:
        is_pair = np.isnan(evaluated.label_ids)
        metrics |= pair_metrics(whole["predictions"][is_pair], whole["rejected"][is_pair])
        metrics["pair_loss"] = float(whole["losses"][is_pair].mean()) if is_pair.any() else math.nan
    return metrics | _metrics_of_labels(read, labels, readout) if len(labels) else metrics


def _metrics_of_labels(read: RowsRead[np.ndarray], labels: np.ndarray, readout: Readout) -> dict[str, float]:
    """The metrics of rows that have a label."""
    metrics = regression_metrics(read["predictions"], labels)
    if len(readout.grid) > 1:
        metrics["qwk"] = qwk(read["predictions"], labels, readout.grid.values)
    distributions = distributions_of(read, readout)
    if distributions is not None:
        metrics |= distributions.metrics()
    if "parsed" in read:
        metrics["parsed"] = float(read["parsed"].mean())
        metrics |= rail_metrics(read["rail"], labels)
    return metrics


def distributions_of(read: RowsRead[np.ndarray], readout: Readout) -> RowDistributions | None:
    """The distributions of an evaluation's rows, where there are any, and labels."""
    if "label_shares" not in read:
        return None
    return RowDistributions(
        readout.values.numpy(), read["log_probs"], read["label_shares"], read["rated"] > 0, read["beyond"]
    )


def as_numbers(evaluated: EvalPrediction, *, with_losses: bool) -> EvalPrediction:
    """What a user's `compute_metrics` gets: `predictions` and `label_ids`, both numbers of shape (rows,)."""
    read: RowsRead[np.ndarray] = evaluated.predictions
    return EvalPrediction(
        predictions=read["predictions"],
        label_ids=evaluated.label_ids,
        inputs=evaluated.inputs,
        losses=read["losses"] if with_losses else None,
    )


def evaluation_of(output: EvalLoopOutput, prefix: str, step: int, readout: Readout) -> Evaluation:
    """What is remembered of an evaluation.

    Args:
        output: of the evaluation loop.
        prefix: stands before the names of its metrics, such as "eval_".
        step: after how many steps the weights were as they are.
        readout: which read the rows.
    """
    metrics = {name.removeprefix(prefix): value for name, value in output.metrics.items()}
    kept = {name: metrics[name] for name in _KEPT_METRICS if name in metrics}
    read, labels = with_labels(output.predictions, output.label_ids)
    pairs = len(output.label_ids) - len(labels)
    distributions = distributions_of(read, readout) if len(labels) else None
    return Evaluation(read["predictions"], labels, kept, step, distributions, pairs=pairs)


def refuse_metrics_of_pairs(compute_metrics: Any, *, has_pairs: bool) -> None:
    """Raise a ValueError for metrics of a user's own beside preferences."""
    if compute_metrics is not None and has_pairs:
        raise ValueError(
            "`compute_metrics` gets one number and one label a row, and rows of `chosen` and `rejected` have two "
            "numbers and no label. Leave it out; `evaluate` returns pair_accuracy, pair_margin and pair_loss."
        )


def warn_where_flat(evaluation: Evaluation, name: str, *, step: int, args: RegressionAwareConfig) -> None:
    """Say where a model that was trained predicts about the same number for every prompt.

    Args:
        evaluation: the evaluation.
        name: of its rows, such as "eval".
        step: after how many steps of training.
        args: the settings of the run.
    """
    # Where the grid has hardly any mass, the predictions are all near 0 for that reason, and the readout has said so.
    answers = args.renormalize or evaluation.metrics.get("grid_mass", 1) > _SMALL_MASS
    if step == 0 or not answers or not evaluation.is_flat:
        return
    number = number_text(round(float(evaluation.predictions[0]), 3))
    warn(
        logger,
        f"After step {step} all {name} predictions are about {number}, whatever the prompt. If they differed before, "
        f"training has collapsed: start again with a smaller `learning_rate` (now {args.learning_rate:g}) or more "
        "`warmup_steps`. If not, it has hardly begun: take more steps, or a larger `learning_rate`.",
    )


def prediction_rows(
    columns: Sequence[Mapping[str, Any]], labels: np.ndarray, read: RowsRead[np.ndarray], values: Sequence[float]
) -> list[dict[str, Any]]:
    """A table's rows: `label`, `prediction`, and where there is a distribution, its likeliest numbers, beside others.

    Args:
        columns: what else is shown of the first rows, such as their `prompt`; of texts the end.
        labels: of shape (rows,), of these and of others behind them.
        read: what was read of the same rows.
        values: the numbers of the grid, of shape (grid,).
    """
    rows: list[dict[str, Any]] = []
    for index, shown in enumerate(columns):
        row = {name: _end_of(value) if isinstance(value, str) else value for name, value in shown.items()}
        row |= {"label": float(labels[index]), "prediction": float(read["predictions"][index])}
        if "rejected" in read:
            row["rejected"] = float(read["rejected"][index])
        if "log_probs" in read:
            probs = np.exp(read["log_probs"][index].astype(np.float64))
            likeliest = np.argsort(-probs, kind="stable")[:_NUMBERS_SHOWN]
            row["distribution"] = ", ".join(f"{number_text(values[one])}: {probs[one]:.3f}" for one in likeliest)
        rows.append(row)
    return rows


def _end_of(text: str) -> str:
    return text if len(text) <= _LAST_LETTERS else f"...{text[-_LAST_LETTERS:]}"


def log_table(name: str, rows: list[dict[str, Any]], step: int, callbacks: Iterable[TrainerCallback]) -> None:
    """Send a table to those of `report_to` that can show one: TensorBoard (as Markdown), W&B and trackio."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text(name, _markdown(rows), step)
        elif isinstance(callback, WandbCallback) and callback._wandb is not None and callback._wandb.run is not None:
            table = callback._wandb.Table(dataframe=pandas.DataFrame(rows))
            callback._wandb.log({name: table, "train/global_step": step})
        elif isinstance(callback, TrackioCallback) and callback._trackio is not None:
            table = callback._trackio.Table(dataframe=pandas.DataFrame(rows))
            callback._trackio.log({name: table, "train/global_step": step})


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    for row in rows:
        cells = [f"{row[name]:.4g}" if isinstance(row[name], float) else row[name] for name in names]
        lines.append([cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
