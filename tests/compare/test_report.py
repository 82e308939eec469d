"""The report of a comparison, from runs that are written by hand."""

import csv
import json

import numpy as np
import pytest
from support.made_up_runs import begin, made_up_run

from raft_peft.compare import CompareSettings
from raft_peft.compare.overview import write_overview
from raft_peft.compare.report import write_report
from raft_peft.compare.results import RunResult
from raft_peft.compare.run import end_with
from raft_peft.metrics import qwk

LABELS = np.tile([0.0, 1.0, 2.0], 10)


def settings(folder, **options):
    defaults = {"methods": "rail,ce,raft", "seeds": 2, "train_sizes": "4,all"}
    return CompareSettings("m", str(folder), **{**defaults, **options})


def off_by(error):
    """Predictions that are too high and too low in turn, so that they still tell the labels apart."""
    return LABELS + error * np.where(np.arange(30) % 2, 1, -1)


def runs_of(folder, method, errors, **options):
    """A run for each error: of a seed each, at all rows and at 4."""
    return [
        made_up_run(
            folder / "runs" / method / f"{size}-{seed}",
            method=method,
            seed=seed,
            labels=LABELS,
            predictions=off_by(error),
            train_rows=size,
            **options,
        )
        for size, of_size in errors.items()
        for seed, error in enumerate(of_size)
    ]


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than all else."""
    monkeypatch.setattr("raft_peft.compare.report.draw_pictures", lambda *_: None)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Zero-shot RAIL, and two methods with two seeds and two sizes; what is printed, and `table.json`."""
    tmp_path = tmp_path_factory.mktemp("written")
    begin(tmp_path, test_rows=30)
    pooled = runs_of(tmp_path, "pooled", {None: (0.8, 0.9), 4: (0.7, 0.72)})
    raft = runs_of(tmp_path, "raft", {None: (0.1, 0.12), 4: (0.7, 0.72)}, crps=np.full(30, 0.05), crps_mean=1)
    # It takes 2 for 0, and 0 for 2.
    turned = np.eye(3)[2 - LABELS.astype(int)]
    rail = made_up_run(tmp_path / "runs" / "rail" / "a", method="rail", rate=None, labels=LABELS, probs=turned)
    results = {"rail": [rail], "pooled": pooled, "raft": raft}
    options = settings(tmp_path, methods="rail,pooled,raft")
    text = write_report(tmp_path, options, results, {"ce, seed0": "no luck"}, train_labels=[1.0] * 8)
    return tmp_path, text, json.loads((tmp_path / "table.json").read_text())


def test_differences_from_the_baseline_at_each_size(written):
    _, text, report = written
    assert (report["baseline"], report["level"]) == ("pooled", 0.95)
    found = {(one["method"], one["train_rows"]): one["metrics"] for one in report["differences"]}
    assert set(found) == {(name, size) for name in ("rail", "raft", "mean of the training labels") for size in (4, 8)}
    raft = found["raft", 8]["rmse"]
    assert raft["difference"] == pytest.approx(0.11 - 0.85) and raft["verdict"] == "better" and raft["high"] < 0
    # 0.7 and 0.72 on both sides; without a CRPS of the baseline none is compared.
    assert found["raft", 4]["rmse"]["verdict"] == "not told apart" and "crps" not in found["raft", 8]
    assert found["rail", 8]["rmse"]["verdict"] == "worse"
    lines = [line for line in text.splitlines() if line.startswith("| raft ") and "told apart" in line]
    assert len(lines) == 1 and lines[0].split("|")[2].strip() == "4"
    assert "Method minus pooled, on the same 30 test rows" in text and "Each interval is by itself" in text
    assert "(these weights)" not in text


def test_the_json_holds_each_run_and_the_csv_a_line_for_each_size(written):
    folder, _, report = written
    runs = [run for run in report["runs"] if run["method"] == "raft"]
    assert [(run["train_rows"], run["seed"]) for run in runs] == [(4, 0), (4, 1), (8, 0), (8, 1)]
    assert [run["rmse"] for run in runs] == pytest.approx([0.7, 0.72, 0.1, 0.12])
    assert runs[0]["qwk"] == pytest.approx(qwk(off_by(0.7), LABELS, [0, 1, 2]))
    assert runs[0]["kendall"] > 0 and runs[0]["train_tokens"] == 60 and runs[0]["calibration_error"] is None
    with (folder / "table.csv").open() as file:
        lines = {(line["method"], line["train_rows"]): line for line in csv.DictReader(file)}
    assert len(lines) == 2 * 4
    assert float(lines["raft", "8"]["rmse_mean"]) == pytest.approx(0.11)
    assert (lines["raft", "8"]["rmse_verdict"], lines["raft", "8"]["baseline"]) == ("better", "pooled")
    assert lines["pooled", "8"]["rmse_difference"] == ""
    assert report["summary"][0]["method"] == "rail" and report["failures"] == {"ce, seed0": "no luck"}
    predictions = {path.name for path in (folder / "predictions" / "raft").iterdir()}
    assert predictions == {"seed0.csv", "seed1.csv", "rows4-seed0.csv", "rows4-seed1.csv"}


def test_what_is_printed_has_a_column_for_each_size_and_the_costs(written):
    folder, text, _ = written
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == [
        "Predictions",
        "Learning curves",
        "Differences",
        "Costs",
    ]
    curve = next(line for line in text.splitlines() if line.startswith("| raft ") and "0.710" in line)
    assert [cell.strip() for cell in curve.split("|")[2:4]] == ["0.710 ± 0.014", "0.110 ± 0.014"]
    assert "Predictions, distributions and costs are those of 8 training rows." in text
    costs = text[text.index("### Costs") :]
    assert "| raft   | 0.001         | > 20              | 6e-05     | 1.0           | 1.00" in costs
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        "prediction_and_truth.png",
        "validation_rmse.png",
        "differences.png",
        "learning_curve.png",
        "rmse_and_seconds.png",
        "rmse_and_tokens.png",
    }


def test_runs_from_before_costs_and_scores_of_rows_were_kept(tmp_path):
    begin(tmp_path)
    runs = {"raft": [made_up_run(tmp_path / "runs" / "raft" / "a", cost=None, crps_mean=None)]}
    text = write_report(tmp_path, settings(tmp_path, methods="raft", train_sizes="all"), runs, {}, train_labels=[1.0])
    line = next(line for line in text[text.index("### Costs") :].splitlines() if line.startswith("| raft"))
    assert [cell.strip() for cell in line.split("|")[4:6]] == ["-", "1.0"]
    assert not list((tmp_path / "pictures").glob("rmse_and*"))
    assert RunResult.load(tmp_path / "runs" / "raft" / "a").seconds == 60
    # With one seed of a method that has chance in it, the verdict is of these weights.
    assert "(these weights)" in text


def test_without_a_result_of_the_baseline_nothing_is_compared(tmp_path, no_pictures):
    begin(tmp_path)
    runs = {"raft": [made_up_run(tmp_path / "runs" / "raft" / "a")], "ce": []}
    text = write_report(tmp_path, settings(tmp_path, baseline="ce"), runs, {}, train_labels=[1.0])
    assert "The baseline ce gave no result to compare with." in text
    assert json.loads((tmp_path / "table.json").read_text())["baseline"] is None


def test_an_overview_of_tasks_and_of_one_that_failed(tmp_path, no_pictures):
    texts = {}
    for task, error in (("here", 0.1), ("there", 1.2)):
        folder = tmp_path / task
        begin(folder, test_rows=30)
        results = {"raft": runs_of(folder, "raft", {None: (error,)}), "mbr": runs_of(folder, "mbr", {None: (0.5,)})}
        options = settings(folder, methods="mbr,raft", seeds=1, train_sizes="all")
        texts[task] = write_report(folder, options, results, {}, train_labels=[1.0])
    text = write_overview(tmp_path, texts, {"nowhere": "ValueError: no rows"})
    assert text == (tmp_path / "table.md").read_text()
    raft = next(line for line in text.splitlines() if line.startswith("| raft"))
    assert [cell.strip() for cell in raft.split("|")[2:4]] == ["0.100 (better)", "1.200 (worse)"]
    assert "0.500 (baseline)" in text and "- nowhere failed: ValueError: no rows" in text
    report = json.loads((tmp_path / "table.json").read_text())
    assert set(report["tasks"]) == {"here", "there"} and report["failures"] == {"nowhere": "ValueError: no rows"}
    with (tmp_path / "table.csv").open() as file:
        assert {(line["task"], line["method"]) for line in csv.DictReader(file)} > {("here", "raft"), ("there", "mbr")}
    with pytest.raises(ValueError, match=r"No task gave a result:\n  nowhere: lost"):
        write_overview(tmp_path, {}, {"nowhere": "lost"})


def test_a_run_ends_when_the_comparison_is_killed(monkeypatch):
    import threading

    ended = threading.Event()
    parents = iter([7, 7, 1])
    monkeypatch.setattr("raft_peft.compare.run.os.getppid", lambda: next(parents))
    monkeypatch.setattr("raft_peft.compare.run.os._exit", lambda code: ended.set())
    end_with(7, every=0.01)
    assert ended.wait(timeout=5) and next(parents, None) is None
