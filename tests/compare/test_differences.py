"""Paired differences, against arithmetic, scipy and simulated comparisons."""

import numpy as np
import pytest
from scipy import stats
from support.made_up_runs import made_up_run

from raft_peft.compare import differences
from raft_peft.compare.differences import compare_lines
from raft_peft.compare.lines import Line

LABELS = np.linspace(0, 5, 40)


def line(label, errors, *, labels=LABELS, crps=None, runs=()):
    """A line whose predictions are this far from the labels, of shape (runs, rows)."""
    return Line(label, [{}], runs, predictions=labels + np.asarray(errors), crps=crps)


def against(one, baseline, labels=LABELS):
    (found,) = compare_lines([one, baseline], baseline, labels)
    return found


def errors_of(seeds, size, rows=40):
    """Errors that are `size` in every row, of either sign, and then do not depend on which rows are drawn."""
    signs = np.where(np.arange(rows) % 2, 1, -1)
    return np.outer(seeds, signs) * size


def test_without_noise_of_rows_the_interval_is_that_of_welchs_t_test():
    mine, theirs = np.array([0.8, 1.0, 1.1]), np.array([1.5, 1.6])
    found = against(line("a", errors_of(mine, 1)), line("b", errors_of(theirs, 1))).metrics["rmse"]
    welch = stats.ttest_ind(mine, theirs, equal_var=False).confidence_interval(0.95)
    assert found.difference == pytest.approx(mine.mean() - theirs.mean())
    # The bootstrap of rows with one error each adds nothing but rounding.
    assert (found.low, found.high) == pytest.approx(tuple(welch), rel=1e-6)


@pytest.mark.parametrize("metric", ["rmse", "mae", "pearson", "crps"])
def test_the_error_of_one_seed_is_that_of_scipys_paired_bootstrap(metric):
    random = np.random.default_rng(5)
    a, b = random.normal(size=(1, 40)), random.normal(size=(1, 40)) * 1.3
    mine, theirs = line("a", a, crps=np.abs(a)), line("b", b, crps=np.abs(b))
    found = against(mine, theirs).metrics[metric]

    def statistic(x, y, z, axis=-1):
        of = {
            "rmse": lambda p: np.sqrt(np.mean((p - z) ** 2, axis=axis)),
            "mae": lambda p: np.mean(np.abs(p - z), axis=axis),
            "crps": lambda p: np.mean(np.abs(p - z), axis=axis),
            "pearson": lambda p: stats.pearsonr(p, z, axis=axis).statistic,
        }[metric]
        return of(x) - of(y)

    arrays = (mine.predictions[0], theirs.predictions[0], LABELS)
    scipys = stats.bootstrap(arrays, statistic, paired=True, method="percentile", n_resamples=2000, random_state=1)
    assert found.difference == pytest.approx(statistic(*arrays), rel=1e-9)
    half = stats.t.ppf(0.975, 39) * scipys.standard_error
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)
    assert (found.high + found.low) / 2 == pytest.approx(found.difference, rel=1e-9)


def test_what_is_hard_in_a_row_for_both_cancels():
    random = np.random.default_rng(0)
    shared, own = random.normal(size=40), random.normal(size=(2, 40))
    alike = against(line("a", [shared + 0.1 * own[0]]), line("b", [shared + 0.1 * own[1]])).metrics["rmse"]
    apart = against(line("a", own[:1]), line("b", own[1:])).metrics["rmse"]
    assert alike.high - alike.low < 0.4 * (apart.high - apart.low)


def test_verdicts_follow_what_is_better():
    good, bad = errors_of([1], 0.5), errors_of([1], 2.0)
    found = against(line("a", good, crps=np.abs(good)), line("b", bad, crps=np.abs(bad))).metrics
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(
        ("rmse", "mae", "pearson", "crps"), "better"
    )
    assert found["pearson"].low > 0 > found["rmse"].high
    assert against(line("a", bad), line("b", good)).metrics["pearson"].verdict == "worse"
    # Two seeds that differ by far more than the methods do.
    unsure = against(line("a", errors_of([0.2, 2.0], 1)), line("b", errors_of([1.4, 1.5], 1))).metrics["rmse"]
    assert unsure.verdict == "not told apart" and unsure.low < -5 and unsure.high > 5
    same = against(line("a", good), line("b", good)).metrics["rmse"]
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "not told apart")


def test_a_metric_that_one_of_both_lacks_is_left_out(tmp_path):
    constant = Line("mean", [{}], [], predictions=np.full((1, 40), 7 / 3))
    assert set(against(constant, line("b", errors_of([1], 1))).metrics) == {"rmse", "mae"}
    assert (
        against(line("a", [[1.0]], labels=np.ones(1)), line("b", [[2.0]], labels=np.ones(1)), np.ones(1)).metrics == {}
    )
    # One run of a random method says nothing of its seeds; that of a method without chance is all there is.
    one_seed = [made_up_run(tmp_path / "raft")]
    fixed = [made_up_run(tmp_path / "rail", method="rail", rate=None)]
    assert not against(line("a", errors_of([1], 1), runs=one_seed), line("b", errors_of([1], 1))).seeds_are_known
    assert against(line("a", errors_of([1], 1), runs=fixed), line("b", errors_of([1], 1))).seeds_are_known


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.02), (3, 0.3), (2, 0.1)])
def test_intervals_hold_in_simulated_comparisons(seeds, spread, monkeypatch):
    """Two methods that are alike, whose RMSE over all rows there could be is 1 on average over all seeds."""
    monkeypatch.setattr(differences, "RESAMPLES", 60)
    random, rows, held, trials = np.random.default_rng(0), 50, 0, 200
    for _ in range(trials):
        shared, labels = random.normal(size=rows), random.normal(size=rows)
        lines = [
            line(
                name,
                (1 + spread * random.normal(size=(seeds, 1)))
                * (shared + random.normal(size=rows) * 0.7 + random.normal(size=(seeds, rows)) * 0.7)
                / np.sqrt(1.98),
                labels=labels,
            )
            for name in "ab"
        ]
        held += abs((found := against(*lines, labels).metrics["rmse"]).difference) <= (found.high - found.low) / 2
    assert 0.91 < held / trials <= 1
