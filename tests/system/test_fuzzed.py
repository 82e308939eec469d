"""What holds for any input: the mathematics against sums in Python, and configurations of strangers."""

import contextlib
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from raft_peft import GridDistribution, NumberGrid, decisions
from raft_peft.data.batches import RegressionCollator
from raft_peft.losses import squared_error
from raft_peft.methods.saved_folder import RaftConfig
from raft_peft.metrics import regression_metrics

MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.integers(-(10**6), 10**6).map(lambda number: number / 64)  # which float32 holds exactly
grids = st.lists(numbers, min_size=2, max_size=12, unique=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@MANY
@given(values=st.lists(st.floats() | st.integers() | st.text(max_size=3) | st.none(), max_size=6))
def test_a_grid_holds_what_was_given_or_says_why_not(values):
    try:
        grid = NumberGrid(values)
    except ValueError:
        return
    assert list(grid.values) == [float(value) for value in values]
    assert all(float(text) == pytest.approx(value, rel=1e-11) for value, text in grid)
    assert len(set(grid.texts)) == len(grid)


@st.composite
def distributions(draw):
    values = draw(grids)
    vocabulary = len(values) + draw(st.integers(0, 5))
    rows = draw(st.integers(1, 3))
    logits = [[draw(st.floats(-30, 30)) for _ in range(vocabulary)] for _ in range(rows)]
    return values, logits


@MANY
@given(distributions())
def test_distribution_and_decisions(drawn):
    values, logits = drawn
    ids = torch.arange(len(values)).expand(len(logits), -1)
    found = GridDistribution.from_logits(torch.tensor(logits, dtype=torch.float64), ids, values)
    for row, of_row in enumerate(logits):
        total = sum(math.exp(logit - max(of_row)) for logit in of_row)
        probs = [math.exp(logit - max(of_row)) / total for logit in of_row[: len(values)]]
        assert found.probs[row].tolist() == pytest.approx(probs, abs=1e-5)
        assert float(found.mass[row]) == pytest.approx(sum(probs), abs=1e-5)
        scale = max(map(abs, values)) + 1
        expected = sum(value * prob for value, prob in zip(values, probs, strict=True))
        assert float(decisions.mean(found)[row]) == pytest.approx(expected, abs=1e-5 * scale)
        renormalized = expected / sum(probs)
        assert float(decisions.mean(found, renormalize=True)[row]) == pytest.approx(renormalized, abs=1e-4 * scale)
        assert min(values) - 1e-3 * scale <= renormalized <= max(values) + 1e-3 * scale
        mode = float(decisions.mode(found)[row])
        assert probs[min(range(len(values)), key=lambda i: abs(values[i] - mode))] == pytest.approx(
            max(probs), abs=1e-5
        )
        median = float(decisions.median(found)[row])
        below = sum(prob for value, prob in zip(values, probs, strict=True) if value <= median + 1e-3) / sum(probs)
        above = sum(prob for value, prob in zip(values, probs, strict=True) if value >= median - 1e-3) / sum(probs)
        assert below >= 0.5 - 1e-4
        assert above >= 0.5 - 1e-4


@MANY
@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_losses_and_metrics(pairs):
    predictions, targets = (np.array(side) for side in zip(*pairs, strict=True))
    losses = squared_error(torch.tensor(predictions), torch.tensor(targets))
    assert losses.tolist() == pytest.approx([(a - b) ** 2 for a, b in pairs])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        metrics = regression_metrics(predictions, targets)
        assert metrics["rmse"] == pytest.approx(math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs) / len(pairs)))
        assert metrics["mae"] == pytest.approx(math.fsum(abs(a - b) for a, b in pairs) / len(pairs))
        if np.ptp(predictions) == 0 or np.ptp(targets) == 0:
            assert math.isnan(metrics["pearson"])
            assert math.isnan(metrics["spearman"])
        else:
            ranks = [stats.rankdata(side) for side in (predictions, targets)]
            expected = np.corrcoef(ranks[0], ranks[1])[0, 1]
            assert metrics["spearman"] == pytest.approx(expected, abs=1e-6)


@MANY
@given(
    rows=st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=9), numbers), min_size=1, max_size=5),
    multiple=st.none() | st.integers(1, 8),
    pad=st.integers(0, 99),
)
def test_collator_loses_nothing(rows, multiple, pad):
    encoded = [{"input_ids": ids, "grid_token_ids": [[5], [6]], "label": label} for ids, label in rows]
    batch = RegressionCollator(pad_token_id=pad, pad_to_multiple_of=multiple)(encoded)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % (multiple or 1) == 0
    for ids, mask, label, (expected, of_row) in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], rows, strict=True
    ):
        assert ids[mask.bool()].tolist() == expected
        assert mask[-1] == 1
        assert float(label) == pytest.approx(of_row, rel=1e-6)
    assert batch["labels"].dtype == torch.float32


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "raft_config.json"
    RaftConfig(values=[1.0, 2.0], texts=["1", "2"], token_ids=[[5], [6]], token_texts=["1", "2"]).save(path.parent)
    return path, json.loads(path.read_text())


@MANY
@given(changed=st.data())
def test_a_changed_raft_config_is_loaded_right_or_refused(saved, changed):
    path, contents = saved
    name = changed.draw(st.sampled_from([*contents, "unknown"]))
    value = changed.draw(json_values)
    fuzzed = path.with_name("fuzzed.json")
    fuzzed.write_text(json.dumps({**contents, name: value}))
    with contextlib.suppress(ValueError):
        config = RaftConfig.load(fuzzed)
        assert len(config.grid) == len(config.values) == len(config.texts)
        assert all(isinstance(number, float) and math.isfinite(number) for number in config.grid.values)
        assert config.method in ("raft", value)
        for field in ("separator", "base_model", "dtype", "autocast", "attn_implementation"):
            assert isinstance(getattr(config, field), str | None), field
        assert config.max_length is None or config.max_length >= 1
        config.check_tokens(_Tokenizer())


@MANY
@given(content=st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_file_as_raft_config(saved, content):
    fuzzed = saved[0].with_name("fuzzed.json")
    fuzzed.write_bytes(content)
    with pytest.raises(ValueError, match="not a usable RAFT configuration"):
        RaftConfig.load(fuzzed)


class _Tokenizer:
    def decode(self, ids, skip_special_tokens):
        return {(5,): "1", (6,): "2"}.get(tuple(ids), "?")
