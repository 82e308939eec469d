"""Which runs a comparison needs, how long each trains, and when those that are left will be done."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.settings import CompareSettings


def train_sizes(settings: CompareSettings, rows: int) -> list[int | None]:
    """The numbers of training rows that are compared, ascending; None for all that there are.

    A size that is not below the number of rows is all of them.
    """
    asked = settings.sizes()
    below = sorted(size for size in asked if size is not None and size < rows)
    return [*below, *([None] if len(below) < len(asked) else [])]


def settings_at(settings: CompareSettings, size: int | None, rows: int) -> CompareSettings:
    """The settings of a run on so many of the training rows.

    With a budget of steps they are the same for every size. With one of epochs the steps and the validations between
    them become fewer in proportion, and so does the warm-up.
    """
    if size is None or settings.budget == "steps":
        return settings
    share, warmup = size / rows, settings.warmup_steps
    return replace(
        settings,
        max_steps=max(1, round(settings.max_steps * share)),
        eval_steps=max(1, round(settings.eval_steps * share)),
        # A number of steps is written as a share of all, which stays the same.
        warmup_steps=warmup if warmup < 1 else warmup / settings.max_steps,
    )


@dataclass(frozen=True)
class Planned:
    """A run that is planned: of a method on a task, on so many training rows (None for all)."""

    task: str | None
    method: str
    size: int | None

    def __str__(self) -> str:
        return self.method if self.task is None else f"{self.task} {self.method}"


def planned_runs(settings: CompareSettings, sizes: Iterable[int | None]) -> Iterator[Planned]:
    """The runs of a comparison on one task, each as often as it is needed.

    The learning rates are tried with the first seed at the largest size. The best is that of other seeds and sizes.
    """
    *smaller, largest = sizes
    for method in settings.compared_methods():
        yield from [Planned(settings.task, method.label, largest)] * len(rates_at_first(method, settings))
        yield from (
            Planned(settings.task, method.label, size) for size, _ in later_runs(method, settings, smaller, largest)
        )


def rates_at_first(method: ComparedMethod, settings: CompareSettings) -> list[float | None]:
    """The learning rates that are tried with the first seed at the largest size; one None where nothing is trained."""
    return [*settings.rates()] if method.trains else [None]


def later_runs(
    method: ComparedMethod, settings: CompareSettings, smaller: Iterable[int | None], largest: int | None
) -> list[tuple[int | None, int]]:
    """Size and seed of each run that takes the best of the learning rates."""
    seeds = range(settings.seeds if method.is_random else 1)
    others = smaller if method.trains else []
    return [(largest, seed) for seed in seeds[1:]] + [(size, seed) for size in others for seed in seeds]


class Progress:
    """How many of the planned runs are done, and when the others will be.

    Args:
        planned: all runs, also those that were done before.
    """

    def __init__(self, planned: Iterable[Planned]):
        self._left = Counter(planned)
        self._total = self._left.total()
        self._seconds: defaultdict[Planned, list[float]] = defaultdict(list)

    def finish(self, run: Planned, seconds: float | None) -> None:
        """Note that a run is over, and how many seconds it took; None where it failed or was left out."""
        self._left[run] -= 1
        if seconds is not None:
            self._seconds[run].append(seconds)

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the runs that are done; None where that is not known.

        A run takes as long as those of the same method, size and task; else of the same method; else of all.
        """
        if not any(self._seconds.values()):
            return None
        return sum(count * self._expected(run) for run, count in self._left.items())

    def _expected(self, run: Planned) -> float:
        alike = (
            self._seconds.get(run, []),
            [one for other, all_ in self._seconds.items() if other.method == run.method for one in all_],
            [one for all_ in self._seconds.values() for one in all_],
        )
        known = next(seconds for seconds in alike if seconds)
        return sum(known) / len(known)

    def __str__(self) -> str:
        left = self._left.total()
        done = f"{self._total - left} of {self._total} runs are done"
        if left == 0:
            return f"{done}."
        of_methods: Counter[str] = Counter()
        for run, count in self._left.items():
            of_methods[str(run)] += count
        which = ", ".join(f"{count} of {name}" for name, count in of_methods.items() if count)
        seconds = self.seconds_left
        until = "" if seconds is None else f", about {_duration(seconds)}, until {_time_in(seconds)}"
        return f"{done}. Left: {which}{until}."


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _time_in(seconds: float) -> str:
    return f"{datetime.now() + timedelta(seconds=seconds):%a %d %b %H:%M}"
