"""A calibration at work: in `predict`, in files and in evaluations, by groups and through a map."""

import logging
from decimal import Decimal

import numpy as np
import pytest

from raft_peft import RegressionPredictor
from raft_peft.data.row_sources import read_rows
from raft_peft.prediction.evaluation import evaluate_rows
from raft_peft.prediction.files import predict_file, predict_rows

ROWS = [
    {"prompt": f"Rate item {index} from 0 to 4, the score is", "label": index % 5, "topic": "ab"[index % 2]}
    for index in range(40)
]
LABELS = np.array([row["label"] for row in ROWS], dtype=np.float64)


@pytest.fixture
def predictor(tiny_llama, tokenizer):
    return RegressionPredictor(tiny_llama, tokenizer, range(5))


def inside(low, high):
    return (np.array(low) <= LABELS) & (np.array(high) >= LABELS)


@pytest.mark.parametrize("kind", ["adaptive", "quantiles"])
def test_intervals_of_groups_that_follow_the_distribution(predictor, kind):
    found = predictor.calibrate(ROWS, LABELS, intervals=kind, groups="topic", round_to_grid=True)
    assert (found.kind, found.group_column, len(found.tails), len(found.spreads)) == (kind, "topic", 40, 40)
    assert set(found.mean_widths) == {"constant", "adaptive", "quantiles"}
    _, low, high, distribution = predictor.predict(ROWS, interval=0.8, return_distribution=True)
    # rank ceil(21 x 0.8) = 17 of the 20 of each group, and perhaps more by rounding or where tails are the same
    covered = inside(low, high)
    assert covered[::2].sum() >= 17 and covered[1::2].sum() >= 17
    assert np.isin(low, range(5)).all() and np.isin(high, range(5)).all()
    assert len(distribution) == 40
    # The same from names that come by themselves, from a file, and without keeping the distribution.
    by_name = predictor.predict([row["prompt"] for row in ROWS], interval=0.8, groups=["a", "b"] * 20)
    np.testing.assert_array_equal(by_name.low, low)
    made = [row for chunk in predict_rows(predictor, ROWS, interval=0.8, chunk_size=7) for row in chunk]
    # Batches of other sizes round differently, which may move an end to the next number of the grid.
    same = [(row["low"], row["high"]) == ends for row, ends in zip(made, zip(low, high, strict=True), strict=True)]
    assert sum(same) >= 36
    assert [row["topic"] for row in made] == [row["topic"] for row in ROWS]
    metrics = evaluate_rows(predictor, ROWS, interval=0.8).metrics
    assert metrics["coverage"] == pytest.approx(covered.mean())
    assert metrics["coverage_b"] == pytest.approx(covered[1::2].mean())
    assert evaluate_rows(predictor, ROWS).metrics["interval"] == 0.9


def test_what_groups_cannot_give(predictor, caplog):
    prompts = [row["prompt"] for row in ROWS]
    with pytest.raises(ValueError, match=r"`groups` has 2 names for 40 prompts"):
        predictor.calibrate(prompts, LABELS, groups=["a", "b"])
    predictor.calibrate(prompts, LABELS)
    with pytest.raises(ValueError, match="calibrated on all rows as one, so `groups` has no effect"):
        predictor.predict(prompts, interval=0.5, groups=["a"] * 40)
    with pytest.raises(ValueError, match=r"`groups` is only for intervals. Set `interval`"):
        predictor.predict(prompts, groups=["a"] * 40)
    predictor.calibrate(prompts, LABELS, groups=["a"] * 37 + ["b"] * 3)
    assert "The group 'b' has 3 held-out rows" in caplog.text
    for options, message in (
        ({}, "groups 'a', 'b', and the groups of these rows are not known. Pass `groups`"),
        ({"groups": ["c"] * 40}, "groups 'a', 'b', and not on 'c'"),
        ({"groups": ["b"] * 40}, "3 held-out rows of the group 'b' cannot warrant intervals of level 0.9"),
        ({"groups": ["a"] * 39}, "`groups` has 39 names for 40 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(prompts, interval=0.9, **options)
    # Of a stream it is seen when the names run out, or are left over behind it.
    for names in (39, 41):
        with pytest.raises(ValueError, match=f"`groups` has {names} names for 40 prompts"):
            predictor.predict(iter(prompts), interval=0.5, groups=["a"] * names)
    # Without a level, an evaluation goes on without intervals, and says why.
    with caplog.at_level(logging.WARNING):
        assert "coverage" not in evaluate_rows(predictor, ROWS).metrics
    assert "The intervals are left out. The model was calibrated on the groups" in caplog.text


def test_mapped_predictions(predictor, tmp_path):
    prompts = [row["prompt"] for row in ROWS]
    for ask in ({}, {"interval": 0.9}):
        with pytest.raises(ValueError, match=r"No map .* was learned. Calibrate with one: .*label_map='affine'"):
            predictor.predict(prompts, calibrated=True, **ask)
    raw = predictor.predict(prompts)
    # Labels that rise with the predictions; others have a map that gives every row their mean.
    labels = 4 - LABELS
    found = predictor.calibrate(prompts, labels, label_map="affine")
    slope, intercept = np.polyfit(raw.astype(np.float64), labels, 1)
    assert slope > 0
    expected = np.clip(slope * raw.astype(np.float64) + intercept, 0, 4)
    mapped, _, high = predictor.predict(prompts, interval=0.8, calibrated=True)
    assert mapped == pytest.approx(expected, abs=1e-3) and mapped.dtype == np.float32
    width = np.sort(found.mapped_errors)[32]  # 41 x 0.8 = 32.8
    assert high == pytest.approx(np.clip(mapped + width, 0, 4), abs=1e-5)
    assert predictor.predict(prompts) == pytest.approx(raw)
    adaptive = predictor.calibrate(prompts, labels, label_map="affine", intervals="adaptive")
    assert adaptive.mapped_errors == found.mapped_errors
    same, low, high = predictor.predict(prompts, interval=0.5, calibrated=True)
    assert (same == mapped).all() and np.ptp(high - low) > 1e-3
    predictor.calibrate(prompts, labels, label_map="affine")
    assert predictor.predict(prompts, interval=0.8).predictions == pytest.approx(raw)
    # In a file the numbers are those, rounded, and a file of others is not continued.
    source, target = tmp_path / "rows.csv", tmp_path / "out.csv"
    source.write_text("prompt\n" + "".join(f'"{prompt}"\n' for prompt in prompts))
    assert predict_file(predictor, source, target, interval=0.8, calibrated=True, limit=20) == 20
    with pytest.raises(ValueError, match="calibrated"):
        predict_file(predictor, source, target, interval=0.8)
    assert predict_file(predictor, source, target, interval=0.8, calibrated=True) == 20
    assert [float(row["prediction"]) for row in read_rows(target)] == pytest.approx(mapped.tolist(), abs=1e-4)
    metrics = [evaluate_rows(predictor, ROWS, calibrated=calibrated).metrics["rmse"] for calibrated in (False, True)]
    expected = [np.sqrt(((found - LABELS) ** 2).mean()) for found in (raw, mapped)]
    assert metrics == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"intervals": "wide"}, "`intervals='wide'` does not exist. Use one of constant, adaptive, quantiles"),
        ({}, {"label_map": "cubic"}, "`label_map='cubic'` does not exist"),
        ({}, {"intervals": "quantiles", "label_map": "affine"}, "moves the predictions and not the distribution"),
        ({"grid": [5]}, {"intervals": "adaptive"}, "which has only one number. Use `intervals='constant'`"),
    ],
)
def test_refused_before_a_row_is_read(predictor, settings, options, message):
    def rows():
        raise AssertionError
        yield

    of = RegressionPredictor(predictor.model, predictor.tokenizer, **{"grid": range(5), **settings})
    with pytest.raises(ValueError, match=message):
        of.calibrate(rows(), [], **options)


def test_a_risk_averse_decision_is_written_as_it_is_computed(predictor):
    averse = RegressionPredictor(predictor.model, predictor.tokenizer, range(5), decision="risk_averse:0.5")
    (chunk,) = predict_rows(averse, ROWS)
    assert [row["prediction"] for row in chunk] == pytest.approx(averse.predict(ROWS).tolist(), rel=1e-5)
    assert max(len(Decimal(str(row["prediction"])).normalize().as_tuple().digits) for row in chunk) == 6
