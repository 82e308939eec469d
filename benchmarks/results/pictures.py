"""The pictures of a table, from its figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft_peft.plots import plot_curves

Curves = dict[str, list[tuple[list[float], list[float]]]]


@dataclass(frozen=True)
class Picture:
    """A kind of picture.

    Attributes:
        kind: its name in a file's name.
        title: what is drawn.
        curves: from the figures of a table to its lines.
        labels: of the axes, as `plot_curves` takes them.
    """

    kind: str
    title: str
    curves: Callable[[Mapping[str, Any]], Curves]
    labels: Mapping[str, str]

    def path(self, table: str) -> str:
        """Of the picture of a table, from the folder of the page."""
        return f"images/results_{table}_{self.kind}.png"

    def draw(self, figures: Mapping[str, Any], folder: Path) -> None:
        """Draw that of a table into the folder of the page."""
        path = folder / self.path(figures["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_curves(path, self.curves(figures), **self.labels)


def _over_steps(figures: Mapping[str, Any]) -> Curves:
    """The validation RMSE of each method at the most training rows."""
    most, found = max(curve["train_rows"] for curve in figures["curves"]), defaultdict(list)
    for curve in figures["curves"]:
        if curve["train_rows"] == most:
            points = [
                (step, rmse) for step, rmse in zip(curve["step"], curve["rmse"], strict=True) if rmse is not None
            ]
            found[curve["method"]].append(([step for step, _ in points], [rmse for _, rmse in points]))
    return dict(found)


def _over_rows(figures: Mapping[str, Any]) -> Curves:
    """The RMSE of each line on the test rows, for each seed over the numbers of training rows."""
    found: defaultdict[str, defaultdict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in figures["runs"]:
        if run["rmse"] is not None:
            found[run["method"]][run["seed"]].append((run["train_rows"], run["rmse"]))
    return {
        method: [([rows for rows, _ in points], [rmse for _, rmse in points]) for points in seeds.values()]
        for method, seeds in found.items()
    }


PICTURES = {
    picture.kind: picture
    for picture in (
        Picture("steps", "Validation RMSE against step", _over_steps, {}),
        Picture(
            "rows",
            "Test RMSE against training rows",
            _over_rows,
            {"x_label": "training rows", "y_label": "test RMSE"},
        ),
    )
}
