"""Collapse: in training, the model has come to predict one number for every prompt, or far worse than their mean."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from raft_peft.messages import warn
from raft_peft.methods import METHODS
from raft_peft.methods.distribution_losses import DISTRIBUTION_LOSSES

logger = logging.getLogger(__name__)

# Steps are put together up to so many rows, since the spread of one or two says nothing.
_ROWS = 8
# What is looked at is this share of the run, within these numbers of steps.
_SHARE, _FEWEST, _MOST = 0.02, 3, 10
# Predictions are alike if their standard deviation is below this share of the labels' in each of the steps, and was so
# many times as large before. In runs that learn, single steps were seen down to 0.021.
_ALIKE, _FALL = 0.01, 5
# The squared error is far above that of the labels' mean if it is so many times as large in each of the steps, and has
# risen by this factor.
_FAR_ABOVE, _RISE = 3, 2
# Below this mean probability of the grid, predictions are near 0 if all else counts as 0.
_SMALL_MASS = 0.1
# Labels whose standard deviation within a step is below this share of that in all rows are sorted.
_SORTED = 0.25
# In nats: below this, the answers are on one number.
_SMALL_ENTROPY = 0.1


@dataclass(frozen=True)
class RowSums:
    """Sums over some rows, of which all were predicted by about the same weights.

    Attributes:
        rows: how many.
        prediction, label: sums of them, less the middle of the grid, so that float32 is enough.
        prediction_squared, label_squared: sums of their squares, as above.
        squared_error: sum of the squared differences between prediction and label.
        with_grid: how many of the rows have a distribution whose mass says something.
        grid_mass, entropy: sums over these.
    """

    rows: float = 0
    prediction: float = 0
    prediction_squared: float = 0
    label: float = 0
    label_squared: float = 0
    squared_error: float = 0
    with_grid: float = 0
    grid_mass: float = 0
    entropy: float = 0

    @classmethod
    def of(cls, totals: Mapping[str, float]) -> RowSums:
        """From the totals of a batch, see [`batch_totals`]; none where a prediction is missing or not finite."""
        found = cls(**{name: totals[name] for name in cls.__dataclass_fields__})
        return found if all(map(math.isfinite, vars(found).values())) else cls()

    def __add__(self, other: RowSums) -> RowSums:
        return RowSums(
            *(one + another for one, another in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    @property
    def prediction_std(self) -> float:
        """Standard deviation of the predictions."""
        return _std(self.rows, self.prediction, self.prediction_squared)

    @property
    def label_std(self) -> float:
        """Standard deviation of the labels, which is the RMSE of their mean."""
        return _std(self.rows, self.label, self.label_squared)

    @property
    def rmse(self) -> float:
        """Of the predictions."""
        return math.sqrt(max(self.squared_error, 0) / self.rows)


def _std(rows: float, total: float, squares: float) -> float:
    return math.sqrt(max(squares / rows - (total / rows) ** 2, 0))


@dataclass(frozen=True)
class Collapse:
    """What is seen of a collapse, in the unit of the labels.

    Attributes:
        recent: the rows that were looked at.
        prediction: the mean of their predictions.
        prediction_std: the largest standard deviation in a step of them.
        std_before: the largest in a step before.
        label_std: of all labels so far.
        alike: whether the predictions are alike; else their error is far above that of the labels' mean.
    """

    recent: RowSums
    prediction: float
    prediction_std: float
    std_before: float
    label_std: float
    alike: bool


class CollapseWatch:
    """Looks for a collapse in the sums over batches that training has anyway.

    Args:
        steps: optimizer steps of the run. The last 2 % of them are looked at, but 3 to 10; of less than 8 rows, some
            are put together.
        middle: what was subtracted from predictions and labels in the sums.
    """

    def __init__(self, *, steps: int, middle: float = 0.0):
        self._middle = middle
        self._open = RowSums()
        self._steps: deque[RowSums] = deque(maxlen=min(max(math.ceil(_SHARE * steps), _FEWEST), _MOST))
        self._all = RowSums()
        self._widest = 0.0
        self._first_error: float | None = None

    def add(self, totals: Mapping[str, float]) -> None:
        """Take in a batch, by its totals over all processes, see [`batch_totals`]."""
        self._open += RowSums.of(totals)

    def end_step(self) -> Collapse | None:
        """Take in that an optimizer step ends, and give the collapse, if the latest steps show one."""
        if self._open.rows >= _ROWS:
            self._steps.append(self._open)
            self._all += self._open
            self._widest = max(self._widest, self._open.prediction_std)
            self._open = RowSums()
        if len(self._steps) < (self._steps.maxlen or 0):
            return None
        recent, label_std = sum(self._steps, RowSums()), self._all.label_std
        if self._first_error is None:
            self._first_error = recent.rmse
        # In rows that are sorted by their labels, those of a step are alike, and so should the predictions be.
        within = math.sqrt(sum(step.label_std**2 for step in self._steps) / len(self._steps))
        if within <= _SORTED * label_std:
            return None
        widest = max(step.prediction_std for step in self._steps)
        alike = widest < _ALIKE * label_std and widest * _FALL < self._widest
        least_error = min(step.rmse for step in self._steps)
        far_above = least_error**2 > _FAR_ABOVE * label_std**2 and recent.rmse**2 > _RISE * self._first_error**2
        if not alike and not far_above:
            return None
        mean = self._middle + recent.prediction / recent.rows
        return Collapse(recent, mean, widest, self._widest, label_std, alike)


class CollapseCallback(TrainerCallback):
    """Warns once where a run collapses, and again at its end where that still holds.

    Every trainer has it. `trainer.remove_callback(CollapseCallback)` turns it off.

    Args:
        grid: the numbers of the grid.
    """

    def __init__(self, grid: Sequence[float]):
        self.middle = (min(grid) + max(grid)) / 2
        self._watch = CollapseWatch(steps=1, middle=self.middle)
        self._said = False
        self._found: Collapse | None = None

    def add(self, totals: Mapping[str, float]) -> None:
        """Take in a batch, by its totals over all processes, see [`batch_totals`]."""
        self._watch.add(totals)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin anew."""
        self._watch = CollapseWatch(steps=state.max_steps, middle=self.middle)
        self._said, self._found = False, None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Warn at the first step at which a collapse is seen."""
        self._found = self._watch.end_step()
        if self._found is not None and not self._said:
            self._said = True
            when = f"Training has collapsed by step {state.global_step} of {state.max_steps}"
            warn(logger, explanation(self._found, when, args))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Warn again."""
        if self._found is not None:
            when = f"Training has ended collapsed, after step {state.global_step}"
            warn(logger, explanation(self._found, when, args))


def explanation(found: Collapse, when: str, args: Any) -> str:
    """What to say of a collapse: what is seen, the probable cause, and the cure.

    Args:
        found: the collapse.
        when: that there is one, and at which step, as the beginning of a sentence.
        args: the settings of the run.
    """
    rows = round(found.recent.rows)
    if found.alike:
        # As many digits as tell a hundredth of the labels' spread, and no negative zero.
        about = round(found.prediction, 2 - math.floor(math.log10(found.label_std))) + 0.0
        seen = (
            f"the predictions of the last {rows} rows are all about {about:g}, whatever the prompt. Their standard "
            f"deviation is {found.prediction_std:.1g}, was {found.std_before:.2g} before, and that of the labels is "
            f"{found.label_std:.2g}."
        )
    else:
        seen = (
            f"the RMSE of the last {rows} rows is {found.recent.rmse:.3g}. The mean of the labels, always predicted, "
            f"would have {found.label_std:.3g}."
        )
    cause = f"The usual cause is a `learning_rate` that is too high (here {args.learning_rate:g})."
    cure = f"Start again with a lower one, such as {args.learning_rate / 10:g}."
    own = args.distribution_loss or args.method
    if found.alike and own not in DISTRIBUTION_LOSSES and "distribution_loss" in METHODS[args.method].takes:
        cure += " `distribution_loss='soft_ce'`, whose gradient does not vanish there, is another cure."
    return " ".join([f"{when}: {seen}", *_reason(found, args), cause, cure])


def _reason(found: Collapse, args: Any) -> list[str]:
    """Why the model stays as it is, where that can be seen."""
    recent = found.recent
    if not found.alike or not recent.with_grid:
        return []
    mass, entropy = recent.grid_mass / recent.with_grid, recent.entropy / recent.with_grid
    if mass < _SMALL_MASS and not args.renormalize:
        return [f"The probability of the grid has fallen to {mass:.1g}, and all else counts as 0."]
    if entropy < _SMALL_ENTROPY:
        return ["One number of the grid has nearly all the probability, where the gradient vanishes."]
    return []
