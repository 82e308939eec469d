"""The section of typed questions on the page of the results, from the figures of benchmarks/typed_questions.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raft_peft.compare.table import TITLES, markdown, with_std

# The name of the figures, beside those of the tables.
TYPED_QUESTIONS = "typed_questions"

METRICS = ("rmse", "pearson", "spearman")
_TOGETHER = "together"


def typed_questions(figures: Mapping[str, Any]) -> str:
    """The section, from the figures that were written."""
    found = {task: [run for run in figures["runs"] if run["task"] == task] for task in ("emobank", "judge")}
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    parts = [
        "## Typed questions",
        *(_emobank(found["emobank"]) if found["emobank"] else ()),
        *(_judge(found["judge"]) if found["judge"] else ()),
        f"{figures['model']}, LoRA (r = 16), learning rate {figures['learning_rate']:g}, RAFT with `soft_ce`, at the "
        f"last step. On {figures['device']}; {versions}.",
        "```sh\npython benchmarks/typed_questions.py --data DATA --output OUTPUT\n```",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _emobank(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One model for all questions, beside a model for each."""
    questions = list(dict.fromkeys(one for run in runs for one in run["after"]))
    lines = [["question", "model", *(TITLES[name] for name in METRICS), "runs"]]
    for question in questions:
        constant = next(run["constant"][question] for run in runs if question in run["constant"])
        lines.append([question, "mean of the training targets", f"{constant:.3f}", "-", "-", "-"])
        before = [run["before"] for run in runs if run["before"] and question in run["before"]]
        lines.append([question, "before training", *_cells([one[question] for one in before[:1]]), "-"])
        for label, is_alone in (("of its own", True), ("one for all", False)):
            after = [
                run["after"][question]
                for run in runs
                if question in run["after"] and (len(run["after"]) == 1) == is_alone
            ]
            lines.append([question, label, *_cells(after), str(len(after))])
    # Seeds that all ways have.
    seeds = set.intersection(
        *({run["seed"] for run in runs if run["way"] == way} for way in {run["way"] for run in runs})
    )
    costs = [["models", "training, min", "tokens computed"]]
    for label, is_together in (("one for each question", False), ("one for all", True)):
        some = [run for run in runs if (run["way"] == _TOGETHER) == is_together and run["seed"] in seeds]
        minutes, tokens = (sum(run[name] for run in some) / max(len(seeds), 1) for name in ("seconds", "tokens"))
        costs.append([label, f"{minutes / 60:.1f}", f"{tokens:,.0f}"])
    return [
        "### EmoBank, three questions about each text",
        f"Is one model for three questions as good as three models? All see the same {runs[0]['rows']:,} texts once, "
        f"and are tested on {runs[0]['test_rows']:,}. Each question is a `number` from 1 to 5, and its target the "
        "published mean.",
        markdown(lines),
        markdown(costs),
    ]


def _judge(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A rubric as the criteria of a score, beside the rubric as text."""
    lines = [["rubric", *(TITLES[name] for name in METRICS), "tokens of training", "runs"]]
    (constant,) = runs[0]["constant"].values()
    lines.append(["mean of the training targets", f"{constant:.3f}", "-", "-", "-", "-"])
    for way in dict.fromkeys(run["way"] for run in runs):
        some = [run for run in runs if run["way"] == way]
        before = [figures for run in some if run["before"] for figures in run["before"].values()]
        after = [figures for run in some for figures in run["after"].values()]
        tokens = np.mean([run["tokens"] for run in some])
        lines.append([f"{way}, before training", *_cells(before), "-", "-"])
        lines.append([way, *_cells(after), f"{tokens:,.0f}", str(len(some))])
    return [
        "### A judge with a rubric",
        f"The rubric's levels as criteria of a `score` question, or the rubric as text before a number from 1 to 5. "
        f"{runs[0]['rows']} rows, once each, and {runs[0]['test_rows']} rows of the test; the target is three scores "
        "of a large model.",
        markdown(lines),
    ]


def _cells(found: Sequence[Mapping[str, float]]) -> list[str]:
    """Means and standard deviations over runs."""
    if not found:
        return ["-"] * len(METRICS)
    cells = []
    for name in METRICS:
        values = [one[name] for one in found]
        cells.append(with_std(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan))
    return cells
