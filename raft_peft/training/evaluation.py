"""A few rows of an evaluation with what the model says of them, as a table in the tools that follow a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from transformers import (
    TrainerCallback,
)
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_utils import PredictionOutput

from raft_peft.distribution import GridDistribution
from raft_peft.grid import number_text

# What stands before is the rubric or the template, the same in all rows.
_LAST_LETTERS = 500
_NUMBERS_SHOWN = 5


def prediction_rows(
    prompts: Sequence[str], labels: np.ndarray, read: Mapping[str, np.ndarray], values: Sequence[float]
) -> list[dict[str, Any]]:
    """A table's rows: `prompt`, `label`, `prediction`, and where there is a distribution, its likeliest numbers.

    Args:
        prompts: the texts of the first rows.
        labels: of shape (rows,), of these and of others behind them.
        read: what was read of the same rows: `predictions` of shape (rows,), and perhaps `log_probs` (rows, grid).
        values: the numbers of the grid, of shape (grid,).
    """
    rows: list[dict[str, Any]] = []
    for index, prompt in enumerate(prompts):
        text = prompt if len(prompt) <= _LAST_LETTERS else f"...{prompt[-_LAST_LETTERS:]}"
        row = {"prompt": text, "label": float(labels[index]), "prediction": float(read["predictions"][index])}
        if "log_probs" in read:
            probs = np.exp(read["log_probs"][index].astype(np.float64))
            likeliest = np.argsort(-probs, kind="stable")[:_NUMBERS_SHOWN]
            row["distribution"] = ", ".join(f"{number_text(values[one])}: {probs[one]:.3f}" for one in likeliest)
        rows.append(row)
    return rows


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


class RegressionPredictionOutput(PredictionOutput):
    """What `predict` returns: a `PredictionOutput` of three fields, with the distribution as an attribute.

    Attributes:
        predictions: one number a row, of shape (rows,), in the order of the dataset and the unit of the labels.
        label_ids: the labels, of shape (rows,), or None where the dataset has none.
        metrics: the metrics, where the dataset has labels.
        distribution: the probabilities of the grid behind each number, over the whole vocabulary; None where the
            method gives a number alone.
        rail: where the numbers were parsed from text, the expectations over the grid beside them, of shape (rows,).
    """

    distribution: GridDistribution | None
    rail: np.ndarray | None
