"""The pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raft_peft.metrics import Evaluation
from raft_peft.plots.predictions import plot_distributions, plot_predictions
from raft_peft.plots.uncertainty import TWO_DEVIATIONS, plot_uncertainty


def plot_evaluation(path: str | Path, evaluation: Evaluation, name: str) -> list[Path]:
    """Draw predictions against the truth, and in files beside it what there is of distributions.

    Args:
        path: the image file of the predictions, such as `stars.png`. The picture of distributions is then
            `stars-uncertainty.png`, and where labels are several ratings, `stars-ratings.png` shows the distribution
            of the ratings beside the predicted one, for a few rows.
        evaluation: what is drawn.
        name: of the model.

    Returns:
        The files that were written.
    """
    path = Path(path)
    plot_predictions(path, evaluation.labels, {name: evaluation.predictions})
    found = evaluation.distributions
    if found is None:
        return [path]
    distribution = found.distribution
    probs = distribution.renormalized().probs.numpy()
    spread = path.with_stem(f"{path.stem}-uncertainty")
    plot_uncertainty(
        spread,
        found.values,
        probs,
        found.label_shares,
        widths=2 * distribution.std.numpy() if evaluation.widths is None else evaluation.widths,
        width_label=TWO_DEVIATIONS if evaluation.widths is None else "width of the calibrated interval",
        errors=np.abs(evaluation.predictions - evaluation.labels),
        title=name,
    )
    if not found.rated.any():
        return [path, spread]
    raters = path.with_stem(f"{path.stem}-ratings")
    rows = np.flatnonzero(found.rated)
    plot_distributions(
        raters,
        found.values,
        found.label_shares[rows],
        probs[rows],
        evaluation.labels[rows],
        title=name,
        labels=("ratings", "predicted"),
    )
    return [path, spread, raters]
