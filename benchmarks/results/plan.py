"""What is left to run, and about how many hours it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raft_peft.compare import compare_methods
from raft_peft.compare.comparison import RUNS
from raft_peft.compare.results import finished_runs
from results.prepared import Kind, Prepared

# Steps of training that are timed where a model has no runs.
_STEPS = 3


def plan(tables: Sequence[Prepared], seconds_per_token: dict[str, float]) -> str:
    """A line for each table: the runs that are done, and the hours that the others take on this machine.

    Args:
        tables: the tables.
        seconds_per_token: of training each model, where they are known.
    """
    lines, known = [], []
    for table in tables:
        left, planned = table.left(), table.planned.total()
        hours = hours_left(table, seconds_per_token.get(table.table.model))
        known += [] if hours is None else [hours]
        time = "not known yet" if hours is None else f"{hours:.1f} h left"
        lines.append(f"{table.table.name:20} {planned - left.total():4} of {planned:3} runs are done, {time}")
    if known:
        lines.append(f"Altogether about {sum(known):.1f} h, one run at a time.")
    return "\n".join(lines)


def hours_left(table: Prepared, seconds_per_token: float | None) -> float | None:
    """An estimate for the runs that are not done; None where nothing is known.

    A run takes as long as those of its kind that are done, else as long as its tokens.
    """
    done = table.done()

    def seconds(kind: Kind) -> float | None:
        alike = [run.seconds for run in done if (run.run.method, run.run.train_rows) == kind]
        if alike:
            return sum(alike) / len(alike)
        return None if seconds_per_token is None else table.work(kind) * seconds_per_token

    each = [(count, seconds(kind)) for kind, count in table.left().items()]
    if any(one is None for _, one in each):
        return None
    return sum(count * one for count, one in each if one is not None) / 3600


def known_speeds(tables: Sequence[Prepared]) -> dict[str, float]:
    """The seconds for each token of training, of the models of which runs are done."""
    spent: dict[str, tuple[float, float]] = {}
    for table in tables:
        for run in table.done():
            if run.metrics.get("train_tokens"):
                seconds, tokens = spent.get(table.table.model, (0.0, 0.0))
                spent[table.table.model] = seconds + (run.train_seconds or 0.0), tokens + run.metrics["train_tokens"]
    return {model: seconds / tokens for model, (seconds, tokens) in spent.items()}


def measured_speed(table: Prepared, folder: Path) -> float:
    """The seconds for each token of training of a table's model, from a few steps of RAFT on its rows."""
    settings = replace(
        table.settings,
        output_dir=str(folder / table.table.name),
        suite=None,
        methods="raft",
        baseline=None,
        decisions="mean",
        train_sizes="all",
        seeds=1,
        learning_rates="1e-3",
        max_steps=_STEPS,
        eval_steps=_STEPS,
        max_train_samples=_STEPS * table.settings.per_device_train_batch_size,
        max_eval_samples=2,
        max_test_samples=2,
    )
    compare_methods(settings)
    (run,) = finished_runs(Path(settings.output_dir) / RUNS / "raft")
    return (run.train_seconds or 0.0) / run.metrics["train_tokens"]
