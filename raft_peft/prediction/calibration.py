"""What held-out rows teach about a model's errors: intervals that cover, and a temperature of its distributions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raft_peft.data.labels import range_of_grid
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.methods.saved_folder import CALIBRATION_NAME, find_file

# The range in which the temperature is sought.
_COLDEST, _HOTTEST = 0.02, 50.0


@dataclass(frozen=True)
class Calibration:
    """Errors on held-out rows, saved beside the adapter as `calibration.json`.

    Intervals are those of split conformal prediction (Lei et al., "Distribution-free predictive inference for
    regression", JASA 2018): prediction plus and minus a quantile of the held-out absolute errors. Where the rows to
    come are like the held-out ones (exchangeable with them), an interval of level 0.9 holds the label with a
    probability of at least 0.9, whatever the model. That is on average over rows, not for each kind of row, and for
    labels within the range of the grid and the held-out labels, at whose ends intervals are cut off.

    Attributes:
        errors: the absolute errors of the held-out rows, from the least, in the unit of the labels.
        low, high: the range of their labels and of the grid, which intervals do not leave; of a grid of one number,
            the range from 0 to it.
        temperature: what `GridDistribution.tempered` takes to make the distributions of the held-out rows as sure as
            they are right; None where the method has no distribution, or the grid holds one number alone.
        settings: how numbers were read off the model; intervals hold for these alone.
    """

    errors: tuple[float, ...]
    low: float
    high: float
    temperature: float | None
    settings: Mapping[str, Any]

    def intervals(self, predictions: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the labels lie with a probability of at least `level`.

        Args:
            predictions: of shape (rows,).
            level: the share of labels to be covered, between 0 and 1.

        Returns:
            The lower and the upper ends, of shape (rows,), in the unit of the labels.

        Raises:
            ValueError: as in `half_width`.
        """
        width = self.half_width(level)
        predictions = np.asarray(predictions, dtype=np.float64)
        return np.clip(predictions - width, self.low, self.high), np.clip(predictions + width, self.low, self.high)

    def half_width(self, level: float) -> float:
        """How far from its prediction a label lies at most, with a probability of at least `level`.

        Raises:
            ValueError: the level is not between 0 and 1, or higher than so few held-out rows can warrant.
        """
        if not 0 < level < 1:
            raise ValueError(f"`interval={level}` is not between 0 and 1. Pass the share to be covered, such as 0.9.")
        rows = len(self.errors)
        # Among the rows + 1 errors, the new row's has each rank with the same probability.
        rank = math.ceil((rows + 1) * level - 1e-9)
        if rank > rows:
            raise ValueError(
                f"{rows} held-out rows cannot warrant intervals of level {level}: calibrate on "
                f"{math.ceil(level / (1 - level) - 1e-9)} rows or more, or ask for {rows / (rows + 1):.3g} at most."
            )
        return self.errors[rank - 1]

    def save(self, folder: str | Path) -> None:
        """Write `calibration.json` into a folder."""
        text = json.dumps(asdict(self), indent=1)
        (Path(folder) / CALIBRATION_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def find(cls, name: str, hub: Mapping[str, Any]) -> Calibration | None:
        """That of a folder or Hub repository, or None where it has none.

        Args:
            name: the folder or repository.
            hub: how the Hub is reached: `revision`, `token` and so on.

        Raises:
            ValueError: as in `load`.
        """
        path = find_file(name, CALIBRATION_NAME, hub)
        return None if path is None else cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a `calibration.json`.

        Raises:
            ValueError: the file is not one.
        """
        try:
            found = _checked(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a usable calibration: {error}. Remove it, and calibrate again with "
                "`predictor.calibrate(prompts, labels)`."
            ) from error
        return found


def _checked(read: Any) -> Calibration:
    """The calibration that a file holds.

    Raises:
        ValueError: it is none. The message says what is wrong.
    """
    if not isinstance(read, dict):
        raise ValueError(f"it is {type(read).__name__}, and not an object")
    missing = [name for name in ("errors", "low", "high", "temperature", "settings") if name not in read]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    errors, temperature, settings = read["errors"], read["temperature"], read["settings"]
    if not isinstance(errors, list) or not errors:
        raise ValueError("its errors are not a list of numbers")
    if not isinstance(settings, dict):
        raise ValueError("its settings are not an object")
    for name, number in (*(("error", error) for error in errors), ("low", read["low"]), ("high", read["high"])):
        if not _is_finite(number):
            raise ValueError(f"its {name} {number!r} is not a finite number")
    if min(errors) < 0:
        raise ValueError(f"its error {min(errors)} is negative")
    if read["low"] > read["high"]:
        raise ValueError(f"its range goes from {read['low']} down to {read['high']}")
    if temperature is not None and not (_is_finite(temperature) and temperature > 0):
        raise ValueError(f"its temperature {temperature!r} is not a finite number above 0")
    return Calibration(
        tuple(sorted(float(error) for error in errors)),
        float(read["low"]),
        float(read["high"]),
        None if temperature is None else float(temperature),
        settings,
    )


def _is_finite(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def calibration_of(
    predictions: np.ndarray,
    labels: np.ndarray,
    distribution: GridDistribution | None,
    grid_values: Sequence[float],
    settings: Mapping[str, Any],
) -> Calibration:
    """The calibration that held-out rows give.

    Args:
        predictions, labels: of shape (rows,).
        distribution: of the same rows; None where the method has none.
        grid_values: the numbers of the grid.
        settings: how numbers are read off the model.

    Raises:
        ValueError: there are no rows, or predictions that are not numbers.
    """
    if len(labels) == 0 or predictions.shape != labels.shape:
        raise ValueError(
            f"Calibration needs a label for each prompt, and at least one; got {len(predictions)} predictions and "
            f"{len(labels)} labels."
        )
    errors = np.abs(predictions.astype(np.float64) - labels)
    if not np.isfinite(errors).all():
        row = int(np.flatnonzero(~np.isfinite(errors))[0])
        raise ValueError(
            f"The prediction of row {row} is {predictions[row]} and its label {labels[row]}. Both must be numbers."
        )
    low, high = range_of_grid(NumberGrid(grid_values))
    temperature = None
    # Given that the answer is on a grid of one number, it is sure at any temperature.
    if distribution is not None and len(distribution.values) > 1:
        temperature = fitted_temperature(distribution, labels)
    return Calibration(
        errors=tuple(np.sort(errors).tolist()),
        low=min(low, float(labels.min())),
        high=max(high, float(labels.max())),
        temperature=temperature,
        settings=dict(settings),
    )


def fitted_temperature(distribution: GridDistribution, labels: np.ndarray) -> float:
    """The temperature under which the labels are the likeliest (Guo et al., ICML 2017).

    A label between two numbers of the grid counts as both, each by its nearness, and one beyond the grid as its end.

    Args:
        distribution: of the rows, over two numbers or more.
        labels: of shape (rows,).
    """
    from scipy.optimize import minimize_scalar

    values, order = distribution.values.double().cpu().sort()
    log_probs = distribution.log_probs.double().cpu()[:, order]
    # A number that is ruled out stays so at any temperature. Its -inf would give NaN times a share of 0.
    log_probs = log_probs.clamp(min=torch.finfo(torch.float32).min)
    targets = torch.as_tensor(labels, dtype=torch.float64).clamp(values[0], values[-1])
    above = torch.searchsorted(values, targets).clamp(1, len(values) - 1)
    share = (targets - values[above - 1]) / (values[above] - values[above - 1])
    rows = torch.arange(len(targets))

    def loss(log_temperature: float) -> float:
        tempered = (log_probs / math.exp(log_temperature)).log_softmax(-1)
        likelihood = (1 - share) * tempered[rows, above - 1] + share * tempered[rows, above]
        return -likelihood.mean().item()

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)
