"""The report of a comparison: tables, the figures behind them, pictures, and each method's predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.differences import LEVEL, AgainstBaseline, compare_lines
from raft_peft.compare.leaks import Leak
from raft_peft.compare.lines import Line, lines_of, mean_line
from raft_peft.compare.pictures import draw_pictures
from raft_peft.compare.results import RunResult, chosen_runs
from raft_peft.compare.run import COMPARISON, PREDICTIONS
from raft_peft.compare.schedule import train_sizes
from raft_peft.compare.settings import CompareSettings
from raft_peft.compare.table import (
    about_differences,
    costs_table,
    differences_table,
    distributions_table,
    predictions_table,
    sizes_table,
)
from raft_peft.compare.table_files import CSV, JSON, MARKDOWN, each_run, summary, write_csv, write_json
from raft_peft.grid import NumberGrid

# The runs of each method, by its label.
Runs = Mapping[str, Sequence[RunResult]]


def write_report(
    folder: Path,
    settings: CompareSettings,
    results: Runs,
    failures: Mapping[str, str],
    *,
    train_labels: Sequence[float],
    leaks: Sequence[Leak] = (),
) -> str:
    """Write the tables, `predictions/` and `pictures/`, and return the tables as Markdown.

    `table.md` holds what is printed, `table.csv` a line for each line of the tables and number of training rows, with
    all digits, and `table.json` the same under `summary`, beside

    - `runs`: each run of each line, with its seed, metrics and costs;
    - `differences`: of each line and number of training rows from the `baseline`: under `metrics`, the `difference`,
      the ends `low` and `high` of its interval of `level`, and the `verdict`;
    - `rows` of each split, `leaks` between them, `failures`, and the model, task, recipe and steps.

    Args:
        folder: of the comparison.
        settings: of the comparison.
        results: the finished runs of each method.
        failures: the reason of each run that failed.
        train_labels: whose mean is the prediction that all others must beat.
        leaks: between test and training rows.

    Raises:
        ValueError: no run gave a result.
    """
    told = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))
    diverged = [f"{label}, {run.folder.name}" for label, runs in results.items() for run in runs if run.diverged]
    failures = {**failures, **dict.fromkeys(diverged, "it diverged, no validation RMSE is a number")}
    all_rows = told["rows"].get("train", len(train_labels))
    chosen = _chosen_at_sizes(settings, results, all_rows)
    if not chosen:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise ValueError(f"No run of the comparison gave a result:\n{reasons}")
    *_, (largest, of_largest) = chosen.items()
    target = next(iter(of_largest.values()))[0].predictions["label"]
    grid = NumberGrid(dict(told["grid"]))
    lines = {}
    for size, of_methods in chosen.items():
        lines[size] = [
            line for label, runs in of_methods.items() for line in lines_of(label, runs, settings, grid, size)
        ]
        _name_exact_rail(lines[size], of_methods)
        lines[size].append(mean_line(train_labels, target, grid, train_rows=size))
    compared = [one for at_size in lines.values() for one in _compared(at_size, settings, target)]

    every_line = [line for at_size in lines.values() for line in at_size]
    rows = summary(every_line, compared)
    write_csv(folder / CSV, rows)
    report = {
        **_told(settings, told),
        "baseline": compared[0].baseline if compared else None,
        "level": LEVEL,
        "leaks": [asdict(leak) for leak in leaks],
        "failures": failures,
        "summary": rows,
        "differences": [asdict(one) for one in compared],
        "runs": each_run(every_line),
    }
    write_json(folder / JSON, report)
    sections = _sections(settings, lines, compared, len(target))
    text = f"{sections}\n{_about(settings, told['rows'], lines[largest], failures, leaks)}\n"
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    _write_predictions(folder / "predictions", chosen)
    draw_pictures(folder / "pictures", of_largest, lines, [one for one in compared if one.train_rows == largest])
    return text


def _chosen_at_sizes(settings: CompareSettings, results: Runs, all_rows: int) -> dict[int, dict[str, list[RunResult]]]:
    """For each number of training rows, ascending, the chosen runs of each method that has any."""
    sizes = train_sizes(settings, all_rows)
    found = {}
    for size in sizes:
        of_methods = {
            label: chosen_runs(runs, settings.seeds, train_rows=size, largest=sizes[-1])
            for label, runs in results.items()
        }
        found[all_rows if size is None else size] = {label: runs for label, runs in of_methods.items() if runs}
    return {size: of_methods for size, of_methods in found.items() if of_methods}


def _name_exact_rail(lines: Sequence[Line], of_methods: Runs) -> None:
    """Tell `rail` from the mean of samples that estimates it, where both are compared."""
    if any(label.startswith("rail:num_samples=") for label in of_methods):
        for line in lines:
            line.label += ", exact" if line.label == "rail" else ""


def _compared(lines: Sequence[Line], settings: CompareSettings, target: Any) -> list[AgainstBaseline]:
    """The lines against the baseline; none where it gave no result."""
    asked = settings.baseline_label()
    usual = [line for line in lines if line.runs and line.runs[0].run.method == asked]
    baseline = next((line for line in [*lines, *usual] if line.label == asked), usual[0] if usual else None)
    return [] if baseline is None else compare_lines(lines, baseline, target)


def _told(settings: CompareSettings, told: Mapping[str, Any]) -> dict[str, Any]:
    """What the comparison is of."""
    names = (
        "model",
        "task",
        "train_file",
        "recipe",
        "max_steps",
        "eval_steps",
        "keep",
        "seeds",
        "train_sizes",
        "budget",
    )
    return {**{name: getattr(settings, name) for name in names}, "rows": told["rows"]}


def _figures(settings: CompareSettings) -> Mapping[str, str]:
    """What the paper has for the lines of this table; empty where it is not on a dataset of the paper's table."""
    suite = settings.suite_asked_for()
    return {} if suite is None or settings.task is None else suite.figures.get(settings.task, {})


def _sections(
    settings: CompareSettings,
    lines: Mapping[int, Sequence[Line]],
    compared: Sequence[AgainstBaseline],
    test_rows: int,
) -> str:
    """The tables, each under its heading. Those of predictions, distributions and costs are at the most rows."""
    largest = list(lines.values())[-1]
    sections = {
        "Predictions": predictions_table(largest, _figures(settings)),
        "Distributions": distributions_table(largest),
        "Learning curves": sizes_table(lines) if len(lines) > 1 else "",
    }
    if compared:
        about = about_differences(compared, test_rows)
        sections["Differences"] = f"{differences_table(compared)}\n{about}\n"
    else:
        sections["Differences"] = f"The baseline {settings.baseline_label()} gave no result to compare with.\n"
    sections["Costs"] = costs_table(largest)
    return "\n".join(f"### {name}\n\n{table}" for name, table in sections.items() if table)


def _about(
    settings: CompareSettings,
    counts: Mapping[str, int],
    lines: Sequence[Line],
    failures: Mapping[str, str],
    leaks: Sequence[Leak],
) -> str:
    """What stands under the tables."""
    data = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    source = settings.task or settings.train_file or "a dataset of your own"
    tested = "best step by validation RMSE" if settings.keep == "best" else "last step"
    about = [
        f"{settings.model}, {source} ({data}), recipe {settings.recipe}, {settings.max_steps:,} steps, validated "
        f"every {settings.eval_steps:,}, on {lines[0].runs[0].metrics['device']}. Mean ± standard deviation over the "
        f"seeds; each run is tested at its {tested}."
    ]
    if settings.sizes() != [None]:
        about += [f"Predictions, distributions and costs are those of {lines[0].train_rows:,} training rows."]
    if any(line.ended_early for line in lines):
        about += [
            "`>`: a run of this method was at its best at its last step, and had not converged. More steps "
            "(`--max_steps`) may make it better."
        ]
    if settings.quick:
        about += ["Made with `--quick`: it shows that everything works, and nothing about the methods."]
    about += [f"Rows in common: {leak}" for leak in leaks]
    if not all(leak.dropped for leak in leaks):
        about += ["`--drop_leaks true` removes them from training and validation."]
    about += ["\n".join(f"- {name} failed: {reason}" for name, reason in failures.items())] if failures else []
    return "\n\n".join(about)


def _write_predictions(folder: Path, chosen: Mapping[int, Runs]) -> None:
    """The predictions of the runs on the most training rows as `seed0.csv`, of others as `rows100-seed0.csv`."""
    *_, largest = chosen
    for size, of_methods in chosen.items():
        for label, runs in of_methods.items():
            for run in runs:
                name = f"seed{run.run.seed}.csv" if size == largest else f"rows{size}-seed{run.run.seed}.csv"
                path = folder / ComparedMethod.parse(label).slug / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder / PREDICTIONS, path)
