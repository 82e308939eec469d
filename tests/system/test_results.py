"""The tables of docs/results.md: the comparisons are valid, the page follows from the figures, the lines are right."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from results.__main__ import Arguments, main
from results.figures import read_figures
from results.page import page
from results.pictures import PICTURES
from results.plan import hours_left, plan
from results.prepared import Prepared
from results.reference_lines import rater_line, scored_line
from results.tables import TABLES, Table

from raft_peft.compare import CompareSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_table_is_a_valid_comparison(table, quick):
    settings = CompareSettings(model="m", output_dir="o", **table.options("data", train_rows=1001, quick=quick))
    assert settings.baseline in settings.methods
    assert settings.seeds == (1 if quick else 3)
    assert settings.max_steps % 2 == 0 or not quick
    files = [settings.task_path, settings.train_file, settings.eval_file, settings.test_file]
    assert all(file is None or file.startswith("data/") for file in files)


def test_steps_follow_from_rows_and_batch():
    """1,001 rows in batches of 8 are 126 steps, three times over; two batches of 4 rows are as many."""
    options = TABLES["tweets"].options("data", train_rows=1001)
    assert (options["max_steps"], options["eval_steps"]) == (378, 42)
    judge = TABLES["judge"].options("data", train_rows=1001)
    assert (judge["max_steps"], judge["eval_steps"]) == (630, 70)


def test_one_rater_against_the_mean_of_the_others():
    """By hand: the pairs are (1, 3), (3, 1); (4, 4), (4, 4); (0, 3), (3, 1.5), (3, 1.5)."""
    found = rater_line([[1, 3], [4, 4], [0, 3, 3]])
    squares = [(4 + 4) / 2, 0, (9 + 2.25 + 2.25) / 3]
    assert found["rmse"] == pytest.approx(np.sqrt(sum(squares) / 3))
    assert found["mae"] == pytest.approx((2 + 0 + (3 + 1.5 + 1.5) / 3) / 3)
    # The pairs of the first two rows are written three times, those of the last twice, so that rows count alike.
    pairs = [(1, 3), (3, 1), (4, 4), (4, 4)] * 3 + [(0, 3), (3, 1.5), (3, 1.5)] * 2
    assert found["pearson"] == pytest.approx(np.corrcoef(np.array(pairs).T)[0, 1])


def test_scores_are_brought_to_the_labels_by_a_line():
    """Scores -1, 0, 1 of labels -2, 1, 1: the line is 0 + 1.5 x, and 0.5 becomes 0.75."""
    scores = {"bad": -1.0, "so": 0.0, "good": 1.0, "fine": 0.5}
    found = scored_line(
        *(["bad", "so", "good"], [-2, 1, 1]),
        *(["bad", "fine"], [-1.5, 1.75]),
        score=lambda texts: np.array([scores[text] for text in texts]),
    )
    assert found["rmse"] == pytest.approx(np.sqrt(0.5))
    assert found["mae"] == pytest.approx(0.5)
    assert found["pearson"] == pytest.approx(1)


def line(method, rmse, **others):
    return {
        "method": method,
        "train_rows": 2390,
        "learning_rate": 1e-3,
        "runs": 2,
        "steps_to_convergence": 42.0,
        "ended_before_convergence": True,
        "train_seconds": 90.0,
        "peak_memory_bytes": 2**31,
        "rmse_mean": rmse,
        "rmse_std": 0.1,
        "mae_mean": 0.5,
        "mae_std": None,
        "pearson_mean": 0.9,
        "pearson_std": 0.01,
        "spearman_mean": 0.8,
        "spearman_std": 0.02,
        "crps_mean": None,
        "calibration_error_mean": None,
        "rmse_difference": None,
        "rmse_low": None,
        "rmse_high": None,
        "rmse_verdict": None,
        **others,
    }


FIGURES = {
    "name": "tweets",
    "model": "owner/name",
    "options": {"bf16": True, "methods": "sequence_classification,raft", "seeds": 3, "eval_file": None, "chat": False},
    "quick": False,
    "environments": [{"device": "a CPU, 1 threads", "versions": {"raft-peft": "1.0", "torch": "2.0"}}],
    "runs_done": 5,
    "runs_planned": 8,
    "hours": 1.25,
    "rows": {"train": 2390, "validation": 421, "test": 402},
    "baseline": "sequence_classification",
    "failures": {"raft, seed1": "out of memory"},
    "leaks": [{"rows": 3, "of_rows": 2390, "split": "train", "test_rows": 2, "dropped": False}],
    "summary": [
        line("sequence_classification", 0.75),
        line("raft", 0.5, rmse_difference=-0.25, rmse_low=-0.375, rmse_high=-0.125, rmse_verdict="better"),
        line("raft, median", None, rmse_verdict="-"),
    ],
    "runs": [{"seed": 0}, {"seed": 1}],
    "max_steps": 378,
    "eval_steps": 42,
    "curves": [
        {"method": "raft", "train_rows": 2390, "seed": 0, "step": [0, 42], "rmse": [1.0, 0.5]},
        {"method": "raft", "train_rows": 2390, "seed": 1, "step": [0, 42], "rmse": [2.0, 0.5]},
    ],
    "references": {"VADER rules": {"rmse": 0.7, "pearson": 0.88}},
    "paper": {},
}


def section(text, title):
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def cells(text, method):
    row = next(line for line in text.splitlines() if line.startswith(f"| {method} "))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_the_page_is_made_of_the_figures():
    text = page({"tweets": FIGURES})
    tweets = section(text, "Sentiment of tweets")
    head = ["RMSE", "MAE", "Pearson", "Spearman", "RMSE minus sequence_classification", "verdict", "runs"]
    assert cells(tweets, "method") == head
    assert cells(tweets, "`raft`") == [
        *("**0.500 ± 0.100**", "0.500", "0.900 ± 0.010", "0.800 ± 0.020"),
        *("-0.250 [-0.375, -0.125]", "better", "2"),
    ]
    assert cells(tweets, "`sequence_classification`")[0] == "0.750 ± 0.100"
    assert cells(tweets, "`raft`, median")[0] == "-"
    assert cells(tweets, "VADER rules") == ["0.700", "-", "0.880", "-", "-", "-", "-"]
    assert cells(tweets, "VADER rules, as published (ICWSM 2014)")[2] == "0.881"
    costs = tweets[tweets.index("| learning rate") :]
    assert cells(costs, "`raft`") == ["0.001", "1.500 ± 0.707", "> 42", "1.5", "2.00"]
    assert "**5 of 8 runs so far**, 1.2 hours" in tweets
    assert "seeds 0, 1" in tweets
    assert "One seed so far" not in tweets
    assert "On a CPU, 1 threads; raft-peft 1.0, torch 2.0." in tweets
    assert "3 of the 2,390 train rows have the prompt of one of 2 test rows. They were kept." in tweets
    assert "- raft, seed1 failed: out of memory" in tweets
    command = shlex.split(tweets[tweets.index("raft-peft compare") :].partition("```")[0].replace("\\\n", ""))
    assert command[2:] == [
        *("--model", "owner/name", "--bf16", "true", "--methods", "sequence_classification,raft"),
        *("--seeds", "3", "--output_dir", "OUTPUT"),
    ]


def test_tables_without_runs_are_named():
    missing = section(page({"tweets": FIGURES}), "Not run yet")
    assert "`tweets`" not in missing
    assert missing.count("- ") == len(TABLES) - 1


def test_the_committed_page_is_that_of_the_committed_figures():
    figures = read_figures(ROOT / "docs" / "results")
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(figures)


def test_a_table_from_its_rows_to_the_page(tiny_llama, tokenizer, tmp_path, monkeypatch, capsys):
    """The ratings are a number and the next one, so that one rater is off by 1 from the other."""
    tiny_llama.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    for file, first in (("train", 0), ("test", 100)):
        rows = [{"text": f"item {first + index}", "ratings": [index % 4, index % 4 + 1]} for index in range(12)]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Table(
        name="items",
        title="Items",
        about="Items?",
        rows={
            "train_file": "train.jsonl",
            "test_file": "test.jsonl",
            "prompt_template": "Rate the item {text} from 0 to 4: the score is",
            "label_column": "ratings",
            "grid": "0..4",
        },
        settings={"methods": "rail,raft", "baseline": "raft"},
        model="tiny",
        references=("rater",),
        pictures=("rows", "steps"),
    )
    monkeypatch.setitem(TABLES, "items", table)
    # The pictures of a comparison take most of the time, and are tested with it.
    monkeypatch.setattr("raft_peft.compare.report.draw_pictures", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    command = Arguments(data=str(tmp_path), output="runs", models=str(tmp_path), quick=True, only=["items"])
    main(command)
    assert "items                   0 of   2 runs are done" in capsys.readouterr().out
    written = Path("runs", "quick", "results.md").read_text(encoding="utf-8")
    items = section(written, "Items")
    assert cells(items, "one rater against the mean of the others")[:3] == ["1.000", "1.000", "0.667"]
    assert cells(items, "`raft`")[-2:] == ["-", "1"]
    assert cells(items, "`rail`")[-2:-1][0] in ("better", "worse", "not told apart")
    assert "tiny; rows: 10 train, 2 validation, 12 test; 4 steps, validated every 4; seeds 0; 2 runs" in items
    assert "One seed so far" in items
    assert str(tmp_path) not in written + Path("runs", "quick", "results", "items.json").read_text(encoding="utf-8")
    assert all(Path("runs", "quick", PICTURES[kind].path("items")).is_file() for kind in table.pictures)
    main(replace(command, report=True))
    assert "items                   2 of   2 runs are done, 0.0 h left" in capsys.readouterr().out
    assert Path("runs", "quick", "results.md").read_text(encoding="utf-8") == written


def test_the_plan_counts_what_is_left(tmp_path):
    """One of two learning rates of RAFT is done. The other and two seeds take as long each, and RAIL 200 s."""
    options = {"methods": "rail,raft", "baseline": "raft", "task_path": None}
    options = {**TABLES["stsb_smollm2"].options("data", train_rows=80), **options}
    settings = CompareSettings(model="m", output_dir=str(tmp_path / "stsb_smollm2"), **options)
    done = Path(settings.output_dir) / "runs" / "raft" / "lr0.001-seed0"
    done.mkdir(parents=True)
    told = {"comparison": {}, "grid": [], "data": "", "method": "raft", "seed": 0, "learning_rate": 1e-3}
    (done / "settings.json").write_text(json.dumps(told))
    (done / "result.json").write_text(json.dumps({"seconds": 3600.0, "train_seconds": 3000.0}))
    rows = {"train": 80, "validation": 10, "test": 60}
    table = Prepared(TABLES["stsb_smollm2"], settings, rows, tokens=10.0)
    assert table.left() == {("rail", None): 1, ("raft", None): 3}
    # 60 prompts of 10 tokens, at a third of 1 s each.
    assert hours_left(table, 1.0) == pytest.approx(3 + 200 / 3600)
    assert hours_left(table, None) is None
    # 30 steps of 8 rows, and a third of 60 test rows and of 10 rows in 8 validations, the first before any step.
    assert (settings.max_steps, settings.eval_steps) == (30, 4)
    assert table.work(("raft", None)) == pytest.approx(10 * (30 * 8 + (60 + 8 * 10) / 3))
    assert "1 of   5 runs are done, 3.1 h left" in plan([table], {table.table.model: 1.0})
