"""The tables of a comparison as Markdown: predictions in the form of the paper's Table 3, distributions and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raft_peft.compare.differences import LEVEL, AgainstBaseline
from raft_peft.compare.lines import OF_DISTRIBUTIONS, OF_PREDICTIONS, Line

# What a metric is called in a table.
TITLES = {
    "rmse": "RMSE",
    "mae": "MAE",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "qwk": "QWK",
    "crps": "CRPS",
    "calibration_error": "calibration error",
    "central_90_coverage": "coverage of 90 %",
    "central_90_width": "its width",
}
_PAPER = "RMSE in the paper"


def predictions_table(lines: Sequence[Line], figures: Mapping[str, str]) -> str:
    """How good the predictions are, the line of the least RMSE in bold.

    Args:
        lines: of the table.
        figures: what the paper has for them, by their labels; empty for a table without this column.
    """
    best = min(lines, key=lambda line: np.nan_to_num(line.mean("rmse"), nan=np.inf))
    table = [["method", *(TITLES[name] for name in OF_PREDICTIONS), "runs", *([_PAPER] if figures else [])]]
    for line in lines:
        cells = _metrics(line, OF_PREDICTIONS)
        if line is best:
            cells = [cell if cell == "-" else f"**{cell}**" for cell in cells]
        runs = str(len(line.runs)) if line.runs else "-"
        table.append([line.label, *cells, runs, *([figures.get(line.label, "-")] if figures else [])])
    return markdown(table)


def distributions_table(lines: Sequence[Line]) -> str:
    """How good the distributions are, of the methods that have one; empty without any."""
    table = [["method", *(TITLES[name] for name in OF_DISTRIBUTIONS)]]
    table += [[line.label, *_metrics(line, OF_DISTRIBUTIONS)] for line in lines if line.has_distribution]
    return markdown(table) if len(table) > 1 else ""


def costs_table(lines: Sequence[Line]) -> str:
    """What each method costs to train, a line for each; empty if none is trained."""
    table = [["method", "learning rate", "steps to converge", "tokens, M", "training, min", "peak memory, GiB"]]
    seen: set[str] = set()
    for line in lines:
        # The lines of a method are of the same runs.
        if not line.runs or line.runs[0].run.method in seen:
            continue
        seen.add(line.runs[0].run.method)
        tokens, seconds, memory = line.train_tokens, line.train_seconds, line.memory
        table.append(
            [
                line.runs[0].run.method,
                "-" if line.learning_rate is None else f"{line.learning_rate:g}",
                "-" if line.steps is None else f"{'> ' if line.ended_early else ''}{line.steps:.0f}",
                "-" if tokens is None else f"{tokens / 1e6:.3g}",
                "-" if seconds is None else f"{seconds / 60:.1f}",
                "-" if memory is None else f"{memory / 2**30:.2f}",
            ]
        )
    return markdown(table) if len(table) > 1 else ""


def differences_table(compared: Sequence[AgainstBaseline]) -> str:
    """Each method minus the baseline, with intervals, and the verdict by RMSE."""
    names = [name for name in TITLES if any(name in one.metrics for one in compared)]
    sizes = {one.train_rows for one in compared}
    head = ["method", *(["training rows"] if len(sizes) > 1 else []), *(TITLES[name] for name in names), "verdict"]
    table = [head]
    for one in compared:
        cells = []
        for name in names:
            found = one.metrics.get(name)
            cells.append("-" if found is None else f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
        verdict = one.metrics["rmse"].verdict if "rmse" in one.metrics else "-"
        mark = "" if one.seeds_are_known else " (these weights)"
        table.append([one.method, *([f"{one.train_rows:,}"] if len(sizes) > 1 else []), *cells, f"{verdict}{mark}"])
    return markdown(table)


def about_differences(compared: Sequence[AgainstBaseline], rows: int) -> str:
    """How the table of differences is to be read."""
    text = (
        f"Method minus {compared[0].baseline}, on the same {rows:,} test rows, with an interval of {LEVEL * 100:g} % "
        "for the rows (bootstrap) and the seeds (Student's t). Verdict by RMSE: told apart where 0 is outside the "
        "interval. Each interval is by itself: of 20 methods that are as good as the baseline, one is told apart on "
        "average."
    )
    if all(one.seeds_are_known for one in compared):
        return text
    return (
        f"{text} (these weights): a random method has one seed, so that the verdict is of these weights, and not of "
        "the method. Set `--seeds` to 3 or more."
    )


def sizes_table(lines_of_sizes: Mapping[int, Sequence[Line]]) -> str:
    """The RMSE of each line at each number of training rows."""
    labels = dict.fromkeys(line.label for lines in lines_of_sizes.values() for line in lines)
    table = [["RMSE by training rows", *(f"{size:,}" for size in lines_of_sizes)]]
    for label in labels:
        at_size = [{line.label: line for line in lines}.get(label) for lines in lines_of_sizes.values()]
        table.append([label, *("-" if line is None else _metrics(line, ["rmse"])[0] for line in at_size)])
    return markdown(table)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table of cells, the first row its head."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def with_std(mean: float, std: float) -> str:
    """A mean with its standard deviation, "-" where it is not known."""
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(std) else f"{mean:.3f} ± {std:.3f}"


def _metrics(line: Line, names: Sequence[str]) -> list[str]:
    return [with_std(line.mean(name), line.std(name)) for name in names]
