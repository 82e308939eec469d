"""Batches for which the memory is not enough: halved, said once, and the same numbers."""

import math

import pytest
import torch
from datasets import Dataset
from support.training import make

from raft_peft import RegressionPredictor
from raft_peft.forward.memory import PartsThatFit, _left_by_container


class Device:
    """Reads rows, as many at a time as it holds."""

    def __init__(self, holds):
        self.holds = holds
        self.tried = []

    def __call__(self, some):
        rows = list(range(100))[some]
        self.tried.append(len(rows))
        if len(rows) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return rows


def rows_read(parts, device, rows, length):
    return [row for part in parts.run(device, rows, length) for row in part]


def test_halved_until_it_fits_and_remembered(caplog):
    parts, device = PartsThatFit(), Device(holds=3)
    assert rows_read(parts, device, 10, 100) == list(range(10))
    assert device.tried == [10, 5, 2, 2, 2, 2, 2]
    assert "for a batch of 10 prompts of 100 tokens. Prediction goes on with 2 at a time" in caplog.text
    caplog.clear()
    device.tried.clear()
    assert rows_read(parts, device, 5, 100) == list(range(5))
    assert rows_read(parts, device, 3, 50) == list(range(3))  # shorter rows, of which more fit
    assert device.tried == [2, 2, 1, 3]
    device.holds = 1
    assert rows_read(parts, device, 4, 100) == list(range(4))
    assert not caplog.text


def test_a_row_that_does_not_fit_alone_is_an_error_that_says_so():
    for rows in (1, 4):
        with pytest.raises(RuntimeError, match=r"not enough for a single prompt of 100 tokens.*\n.*max_length"):
            PartsThatFit().run(Device(holds=0), rows, 100)


def test_other_errors_are_left_as_they_are():
    def read(some):
        raise RuntimeError("expected a Long tensor")

    with pytest.raises(RuntimeError, match=r"^expected a Long tensor$"):
        PartsThatFit().run(read, 4, 10)


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_limit_of_a_container_leaves(version, tmp_path):
    """Pages of files that are not in use count as free. Without a limit there is none."""
    assert _left_by_container(tmp_path) == math.inf
    folder = tmp_path / "memory" if version == 1 else tmp_path
    folder.mkdir(exist_ok=True)
    limit, used, cached = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "inactive_file 10\ntotal_inactive_file 100\n"),
        2: ("memory.max", "memory.current", "anon 5\ninactive_file 100\n"),
    }[version]
    (folder / "memory.stat").write_text(cached)
    (folder / used).write_text("700\n")
    (folder / limit).write_text("1000\n")
    assert _left_by_container(tmp_path) == 1000 - 700 + 100
    (folder / limit).write_text("max\n")
    assert _left_by_container(tmp_path) == math.inf


@pytest.fixture
def small(tiny_llama):
    """A model that has memory for two rows, and the sizes of what it was called with."""
    sizes = []

    def check(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    tiny_llama.model.embed_tokens.register_forward_pre_hook(check)
    return tiny_llama, sizes


@pytest.mark.parametrize("grid", [range(5), [0, 0.5, 1, 10]], ids=["single tokens", "several tokens"])
def test_prediction_and_evaluation_go_on(grid, small, tokenizer, tmp_path, rows):
    model, sizes = small
    prompts = [row["prompt"] for row in rows]
    predictor = RegressionPredictor(model, tokenizer, grid)
    expected = predictor.predict(prompts, batch_size=1)
    sizes.clear()
    assert predictor.predict(prompts, batch_size=8) == pytest.approx(expected, abs=1e-5)
    assert max(sizes) > 2
    trainer = make(model, tokenizer, tmp_path, grid=grid, options={"per_device_eval_batch_size": 8})
    output = trainer.predict(Dataset.from_list(rows))
    assert output.predictions == pytest.approx(expected, abs=1e-5)
    assert output.distribution.log_probs.shape == (8, len(grid))
    assert output.metrics["test_loss"] == pytest.approx(float(((expected - output.label_ids) ** 2).mean()), abs=1e-4)
