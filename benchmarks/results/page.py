"""The page of the results, as Markdown, from the figures of its tables."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raft_peft.compare.table import TITLES, markdown, with_std
from results.figures import DATA_FOLDER, OUTPUT_FOLDER
from results.pictures import PICTURES
from results.tables import TABLES, Table
from results.typed_questions import TYPED_QUESTIONS, typed_questions

_METRICS = ("rmse", "mae", "pearson", "spearman", "crps", "calibration_error")

_INTRODUCTION = f"""\
# Results

Which method wins on real data? `make results` runs the comparisons of this page and writes it. The figures of each
table are in a JSON file beside it. After an interruption, the same command goes on where it stopped:

```sh
make results {DATA_FOLDER}=../data {OUTPUT_FOLDER}=runs            # all tables, which takes days on two cores
make results {DATA_FOLDER}=../data {OUTPUT_FOLDER}=runs QUICK=1    # all tables at a small size, into runs/quick
```

- Values are the mean ± the standard deviation over the seeds, on the test rows. Each run is tested at its best step on
  validation. Each method has the best of the recipe's learning rates, chosen on validation with the first seed.
- "RMSE minus" is the difference from the baseline on the same test rows, with an interval of 95 % for rows and seeds.
  A method is better or worse if 0 is outside it. [compare.md](compare.md) says how the interval is computed.
- "before training" is the RMSE on validation before the first step, and "steps" the first validated step whose RMSE is
  within 2 % of the best. `>` means that a run was at its best at its last step, and had not converged.
- Times and memory are those of the device that is named. On a CPU, RAFT and `special_token` read rows without padding,
  `ce` and `sequence_classification` with padding.
- To repeat one row of a table, run its second command with the method of this row alone, and without `--baseline`.
"""


def page(all_figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The page.

    Args:
        all_figures: the figures of the tables that have runs, by their names.
    """
    parts = [_INTRODUCTION]
    parts += [_section(table, all_figures[name]) for name, table in TABLES.items() if name in all_figures]
    if TYPED_QUESTIONS in all_figures:
        parts.append(typed_questions(all_figures[TYPED_QUESTIONS]))
    missing = [f"- {table.title}: `{name}`" for name, table in TABLES.items() if name not in all_figures]
    if missing:
        parts.append("## Not run yet\n\n" + "\n".join(missing) + "\n")
    return "\n".join(parts)


def _section(table: Table, figures: Mapping[str, Any]) -> str:
    parts = [f"## {table.title}", table.about, _predictions(table, figures), _costs(figures)]
    parts += [
        f"![{PICTURES[kind].title}: {table.title}]({PICTURES[kind].path(table.name)})" for kind in table.pictures
    ]
    parts += [_how_it_was_run(figures), *_warnings(figures)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _predictions(table: Table, figures: Mapping[str, Any]) -> str:
    """The metrics of each line, its difference from the baseline, and lines of others to compare with."""
    lines, paper = figures["summary"], figures["paper"]
    others = {**figures["references"], **table.published}
    shown = [name for name in _METRICS if any(not _is_missing(line[f"{name}_mean"]) for line in lines)]
    by_rows = len({line["train_rows"] for line in lines}) > 1
    best = {min(_of_rows(lines, rows), key=_rmse)["method"] for rows in {line["train_rows"] for line in lines}}
    head = ["method", "training rows", *(TITLES[name] for name in shown), f"RMSE minus {figures['baseline']}"]
    found = [[*head, "verdict", "runs", "RMSE in the paper"]]
    for line in lines:
        cells = [_with_std(line, name) for name in shown]
        if line["method"] in best and line is min(_of_rows(lines, line["train_rows"]), key=_rmse):
            cells[0] = f"**{cells[0]}**"
        found.append(
            [
                _label(line["method"]),
                f"{line['train_rows']:,}",
                *cells,
                _difference(line),
                line["rmse_verdict"] or "-",
                str(line["runs"] or "-"),
                paper.get(line["method"], "-"),
            ]
        )
    for label, metrics in others.items():
        cells = [f"{metrics[name]:.3f}" if name in metrics else "-" for name in shown]
        found.append([label, "-", *cells, "-", "-", "-", "-"])
    left_out = {
        *({"training rows"} if not by_rows else ()),
        *({"RMSE in the paper"} if not paper else ()),
        *({found[0][2 + len(shown)], "verdict"} if figures["baseline"] is None else ()),
    }
    return markdown(_without(found, left_out))


def _costs(figures: Mapping[str, Any]) -> str:
    """What each method cost, and how fast it learned; empty where nothing was trained."""
    found = [
        ["method", "training rows", "learning rate", "before training", "steps", "training, min", "peak memory, GiB"]
    ]
    kinds = dict.fromkeys((curve["method"], curve["train_rows"]) for curve in figures["curves"])
    for method, rows in kinds:
        curves = [one for one in figures["curves"] if (one["method"], one["train_rows"]) == (method, rows)]
        line = next(
            one for one in _of_rows(figures["summary"], rows) if one["method"] in (method, f"{method}, decoded")
        )
        before = np.array([one["rmse"][0] for one in curves if one["step"][0] == 0], dtype=float)
        found.append(
            [
                _label(method),
                f"{rows:,}",
                f"{line['learning_rate']:g}",
                with_std(before.mean(), before.std(ddof=1) if len(before) > 1 else math.nan) if before.size else "-",
                f"{'> ' if line['ended_before_convergence'] else ''}{line['steps_to_convergence']:.0f}",
                f"{line['train_seconds'] / 60:.1f}",
                f"{line['peak_memory_bytes'] / 2**30:.2f}",
            ]
        )
    by_rows = len({rows for _, rows in kinds}) > 1
    return markdown(_without(found, set() if by_rows else {"training rows"})) if kinds else ""


def _how_it_was_run(figures: Mapping[str, Any]) -> str:
    done, planned = figures["runs_done"], figures["runs_planned"]
    runs = f"{planned} runs" if done == planned else f"**{done} of {planned} runs so far**"
    rows = ", ".join(f"{count:,} {split}" for split, count in figures["rows"].items())
    seeds = ", ".join(map(str, sorted({run["seed"] for run in figures["runs"]})))
    about = (
        f"{figures['model']}; rows: {rows}; {figures['max_steps']:,} steps, validated every "
        f"{figures['eval_steps']:,}; seeds {seeds}; {runs}, {figures['hours']:.1f} hours."
    )
    where = [
        f"On {one['device']}; {', '.join(f'{name} {version}' for name, version in one['versions'].items())}."
        for one in figures["environments"]
    ]
    quick = " --quick" if figures["quick"] else ""
    table = f"python benchmarks/results --data {DATA_FOLDER} --output {OUTPUT_FOLDER} --only {figures['name']}{quick}"
    return f"{about} {' '.join(where)}\n\n```sh\n{table}\n{_command(figures)}\n```"


def _command(figures: Mapping[str, Any]) -> str:
    """The comparison as a call of `raft-peft compare`."""
    options = {"model": figures["model"], **figures["options"], "output_dir": OUTPUT_FOLDER}
    words = ["raft-peft compare"]
    for name, value in options.items():
        if value is not None and value is not False:
            text = "true" if value is True else str(value)
            words.append(f"--{name} {shlex.quote(text)}")
    return " \\\n    ".join(words)


def _warnings(figures: Mapping[str, Any]) -> Iterator[str]:
    if figures["quick"]:
        yield "Made with `--quick`: it shows that everything works, and nothing about the methods."
    if len({run["seed"] for run in figures["runs"]}) == 1:
        yield "One seed so far: intervals and verdicts are of these weights, and not of the methods."
    for leak in figures["leaks"]:
        dropped = "They were removed." if leak["dropped"] else "They were kept."
        yield (
            f"**Rows in common:** {leak['rows']:,} of the {leak['of_rows']:,} {leak['split']} rows have the prompt of "
            f"one of {leak['test_rows']:,} test rows. {dropped}"
        )
    if figures["failures"]:
        yield "\n".join(f"- {name} failed: {reason}" for name, reason in figures["failures"].items())


def _of_rows(lines: Sequence[Mapping[str, Any]], rows: int) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["train_rows"] == rows]


def _rmse(line: Mapping[str, Any]) -> float:
    return math.inf if _is_missing(line["rmse_mean"]) else line["rmse_mean"]


def _with_std(line: Mapping[str, Any], name: str) -> str:
    mean, std = (math.nan if line[f"{name}_{part}"] is None else line[f"{name}_{part}"] for part in ("mean", "std"))
    return with_std(mean, std)


def _difference(line: Mapping[str, Any]) -> str:
    if line["rmse_difference"] is None:
        return "-"
    return f"{line['rmse_difference']:+.3f} [{line['rmse_low']:+.3f}, {line['rmse_high']:+.3f}]"


def _is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _label(method: str) -> str:
    """A method as code, and what is read of it as text: `ce`, decoded."""
    name, comma, rule = method.partition(", ")
    return method if " " in name else f"`{name}`{comma}{rule}"


def _without(table: Sequence[Sequence[str]], columns: set[str]) -> list[list[str]]:
    """A table without the columns of these titles."""
    kept = [place for place, title in enumerate(table[0]) if title not in columns]
    return [[row[place] for place in kept] for row in table]
