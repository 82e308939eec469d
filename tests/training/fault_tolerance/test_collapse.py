"""Runs that collapse are found early, and those that are slow, noisy or sorted are not called collapsed."""

import json
from pathlib import Path

import pytest
from support.training import config, make

from raft_peft.training.fault_tolerance.collapse import CollapseCallback, CollapseWatch, RowSums, explanation

# Of each step of runs of SmolLM2-135M-Instruct, on batches of 8: mean and standard deviation of predictions and of
# labels, root mean squared error, grid mass, entropy.
RUNS = json.loads((Path(__file__).parent / "recorded_runs.json").read_text(encoding="utf-8"))


def totals(prediction, prediction_std, label, label_std, rmse, mass=1.0, entropy=1.0, rows=8):
    """The totals of a batch of rows, from their means and standard deviations."""
    return {
        "rows": rows,
        "prediction": rows * prediction,
        "prediction_squared": rows * (prediction_std**2 + prediction**2),
        "label": rows * label,
        "label_squared": rows * (label_std**2 + label**2),
        "squared_error": rows * rmse**2,
        "with_grid": rows,
        "grid_mass": rows * mass,
        "entropy": rows * entropy,
    }


def first_found(batches, steps):
    """The first step, from 1, after which a collapse is seen, and the collapse; None where there is none."""
    watch = CollapseWatch(steps=steps)
    for step, batch in enumerate(batches, start=1):
        watch.add(batch)
        found = watch.end_step()
        if found is not None:
            return step, found
    return None


def test_the_figures_by_hand():
    # Predictions 1 and 3, labels 2 and 6.
    sums = RowSums(rows=2, prediction=4, prediction_squared=10, label=8, label_squared=40, squared_error=10)
    assert (sums.prediction_std, sums.label_std) == (1, 2)
    assert sums.rmse == pytest.approx(5**0.5)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["collapsed"]])
def test_a_recorded_collapse_is_found_in_the_first_tenth(name):
    run = RUNS[name]
    step, _ = first_found((totals(*figures) for figures in run["batches"]), run["steps"])
    assert step <= run["steps"] / 10


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if not run["collapsed"]])
def test_a_recorded_run_that_learns_is_not_called_collapsed(name):
    run = RUNS[name]
    assert first_found((totals(*figures) for figures in run["batches"]), run["steps"]) is None


LEARNING = [totals(3, spread, 3, 1, (1.04 - spread) ** 0.5) for spread in (0.5, 0.3, 0.2, 0.4, 0.6)]
ALIKE = totals(3, 0.001, 3, 1, 1)


def test_predictions_alike_for_three_steps_of_a_short_run():
    step, found = first_found([*LEARNING, *[ALIKE] * 5], steps=20)
    assert step == len(LEARNING) + 3
    assert found.alike
    assert (found.prediction, found.prediction_std, found.std_before) == pytest.approx((3, 0.001, 0.6))
    assert found.label_std == pytest.approx(1)
    assert found.recent.rows == 24


def test_a_long_run_is_looked_at_longer():
    step, _ = first_found([*LEARNING, *[ALIKE] * 20], steps=10_000)
    assert step == len(LEARNING) + 10


@pytest.mark.parametrize(
    "batches",
    [
        [*LEARNING, ALIKE, ALIKE, LEARNING[0], ALIKE, ALIKE, LEARNING[0]],
        [totals(0.01, 0.004, 3, 1, 3.2)] * 9,
        [*LEARNING, *[totals(label, 0.001, label, 0.01, 0.01) for label in (1, 1, 2, 2, 3, 3)]],
        [totals(0, 0.1, 3, 1, 3.2)] * 9,
        [*LEARNING, totals(3, 4, 3, 1, 5), totals(3, 4, 3, 1, 5), *LEARNING],
        [totals(3, 0.5, 3, 0, 0.5)] * 4 + [totals(3, 0, 3, 0, 0)] * 9,
        [*LEARNING, *[totals(float("nan"), 1, 3, 1, 1)] * 9],
    ],
    ids=["recovers", "never_differed", "sorted_by_label", "far_from_the_beginning", "spikes", "one_label", "nan"],
)
def test_what_is_no_collapse(batches):
    assert first_found(batches, steps=50) is None


def test_an_error_far_above_that_of_the_mean():
    batches = [*LEARNING, *[totals(-4, 0.5, 3, 1, 7)] * 3]
    step, found = first_found(batches, steps=50)
    assert step == len(batches)
    assert not found.alike
    assert found.recent.rmse == pytest.approx(7)


def test_the_batches_of_a_step_count_together():
    watch = CollapseWatch(steps=20)
    for batch in LEARNING:
        watch.add(batch)
        assert watch.end_step() is None
    found = []
    for _ in range(3):
        for _ in range(4):
            watch.add(ALIKE)
        found.append(watch.end_step())
    assert found[:2] == [None, None]
    assert found[2].recent.rows == 96


def test_batches_of_one_row_are_put_together():
    rows = [totals(3, 0, 3 + offset, 0, 1, rows=1) for offset in (-1, 1)]
    learning = [totals(2 + place % 2, 0, 2 + 2 * (place % 2), 0, 0.5, rows=1) for place in range(24)]
    step, found = first_found([*learning, *rows * 12], steps=50)
    assert step == 48
    assert found.label_std == pytest.approx(1)


def test_what_is_said(tmp_path):
    small = totals(0, 0, 3, 1, 3.2, mass=0.001, entropy=0.5)
    _, found = first_found([*LEARNING, *[small] * 3], steps=50)
    said = explanation(found, "Now", config(tmp_path, learning_rate=0.01))
    assert said.startswith("Now: the predictions of the last 24 rows are all about 0, whatever the prompt.")
    assert "Their standard deviation is 0, was 0.6 before, and that of the labels is 1." in said
    assert "The probability of the grid has fallen to 0.001, and all else counts as 0." in said
    assert "Start again with a lower one, such as 0.001. `distribution_loss=" in said
    # Only what is off the grid makes predictions small.
    renormalized = explanation(found, "Now", config(tmp_path, renormalize=True, method="soft_ce"))
    assert "has fallen" not in renormalized
    assert renormalized.endswith("Start again with a lower one, such as 2e-05.")
    _, found = first_found([*LEARNING, *[totals(-4, 0.5, 3, 1, 7)] * 3], steps=50)
    said = explanation(found, "Now", config(tmp_path))
    assert "the RMSE of the last 24 rows is 7. The mean of the labels, always predicted, would have 1." in said
    assert "distribution_loss" not in said


def test_a_run_says_it_once_and_at_its_end(tiny_llama, tokenizer, tmp_path, rows, caplog):
    options = {"max_steps": 40, "learning_rate": 0.1, "warmup_steps": 0}
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options=options)
    trainer.train()
    first, last = [record.message for record in caplog.records if "collapsed" in record.message]
    step = int(first.removeprefix("Training has collapsed by step ").split()[0])
    assert step < 10
    assert "of 40: the predictions of the last 24 rows are all about 2, whatever the prompt." in first
    assert "One number of the grid has nearly all the probability" in first
    assert "`learning_rate` that is too high (here 0.1). Start again with a lower one, such as 0.01." in first
    assert "`distribution_loss='soft_ce'`" in first
    assert last.startswith("Training has ended collapsed, after step 40: the predictions")


def test_a_lower_learning_rate_cures_it_and_the_callback_can_be_removed(tiny_llama, tokenizer, tmp_path, rows, caplog):
    make(tiny_llama, tokenizer, tmp_path, rows, options={"max_steps": 12, "learning_rate": 0.01}).train()
    assert "collapsed" not in caplog.text
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"max_steps": 12, "learning_rate": 0.5})
    trainer.remove_callback(CollapseCallback)
    trainer.train()
    assert "collapsed" not in caplog.text
