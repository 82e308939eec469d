"""Pictures of answers to typed questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy.typing as npt

from raft_peft.metrics import pearson, rmse
from raft_peft.plots.panels import array_of, panels, range_of, save, vector


def plot_answers(
    path: str | Path, answers: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], *, title: str = ""
) -> None:
    """Draw expected levels and numbers against the truth, a panel a question, each in a unit of its own.

    Args:
        path: the image file to write.
        answers: for each question its targets and the answers, both of shape (rows,).
        title: above the picture.

    Raises:
        ValueError: there are no questions, or answers do not have the shape of the targets.
    """
    figure, axes = panels(answers, same_y=False, title=title, x_label="truth", y_label="answer")
    for axis, (name, (truth, found)) in zip(axes, answers.items(), strict=True):
        target = vector(f"answers[{name!r}][0]", truth)
        values = array_of(f"answers[{name!r}][1]", found, target.shape)
        ends = range_of(target, values)
        axis.plot(ends, ends, color="0.6", linewidth=1)
        axis.scatter(target, values, s=9, color="C0", alpha=0.5, linewidths=0)
        correlation = f", Pearson {pearson(values, target):.2f}" if len(target) > 1 else ""
        axis.set_title(f"{name}\nRMSE {rmse(values, target):.2f}{correlation}", fontsize=11)
    save(figure, path)
