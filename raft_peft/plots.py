"""Pictures, from plain arrays. They need matplotlib: pip install raft-peft[plots]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raft_peft.metrics import pearson, rmse


def plot_predictions(
    path: str | Path,
    target: npt.ArrayLike,
    predictions: Mapping[str, npt.ArrayLike],
    *,
    title: str = "",
    x: npt.ArrayLike | None = None,
    x_label: str = "",
) -> None:
    """Draw predictions against the truth, one panel for each set of predictions.

    Args:
        path: the image file to write.
        target: the true numbers, of shape (rows,).
        predictions: a name and the predicted numbers, of shape (rows,), for each panel.
        title: above the picture.
        x: where the target is a function of one number: that number, of shape (rows,). Then target and predictions
            are drawn over it; by default predictions are drawn over the target.
        x_label: what x is.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    target = np.asarray(target, dtype=np.float64)
    figure, axes = pyplot.subplots(
        1, len(predictions), figsize=(4.6 * len(predictions), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, values) in zip(axes[0], predictions.items(), strict=True):
        values = np.asarray(values, dtype=np.float64)
        if x is None:
            ends = [target.min(), target.max()]
            axis.plot(ends, ends, color="0.6", linewidth=1, label="truth")
            axis.scatter(target, values, s=9, alpha=0.5, color="C0", linewidths=0, label="prediction")
            axis.set_xlabel("truth")
        else:
            order = np.argsort(x)
            across = np.asarray(x, dtype=np.float64)[order]
            axis.plot(across, target[order], color="0.6", linewidth=1.5, label="truth")
            axis.scatter(across, values[order], s=9, alpha=0.6, color="C0", linewidths=0, label="prediction")
            axis.set_xlabel(x_label)
        axis.set_title(f"{name}\nRMSE {rmse(values, target):.2f}, Pearson {pearson(values, target):.2f}", fontsize=11)
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("prediction")
    axes[0][0].legend(frameon=False, loc="upper left")
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
