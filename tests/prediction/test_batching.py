"""Chunks of prompts in batches."""

from functools import partial

import numpy as np
import pytest
import torch

from raft_peft import RegressionPredictor
from raft_peft.prediction import batching
from raft_peft.prediction.batching import BatchRunner, autocast_dtype, chunks, collate_prompts

GRID = [0, 1, 2, 3, 4]
BEGINNING = "Rate the quality of what follows from 0 to 4 and answer with a number: "


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (None, None),
        ("float32", None),
        (torch.float32, None),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_dtypes_to_compute_in(name, dtype):
    assert autocast_dtype(name) is dtype


@pytest.mark.parametrize("name", ["int8", "nothing", torch.int64])
def test_dtypes_that_products_are_not_computed_in(name):
    with pytest.raises(ValueError, match=r"autocast=.* is not a dtype to compute in"):
        autocast_dtype(name)


def test_chunks_are_read_as_they_are_needed():
    read = []
    first = next(chunks((read.append(number) or number for number in range(9)), 4))
    assert first == read == [0, 1, 2, 3]


class TestCommonBeginning:
    @pytest.fixture
    def prefixes(self, monkeypatch):
        """The lengths of the beginnings that were run."""
        lengths = []

        class Counted(batching.PrefixCache):
            def __init__(self, model, token_ids):
                lengths.append(len(token_ids))
                super().__init__(model, token_ids)

        monkeypatch.setattr(batching, "PrefixCache", Counted)
        return lengths

    @pytest.fixture
    def predictor(self, tiny_llama, tokenizer):
        return RegressionPredictor(tiny_llama, tokenizer, GRID)

    @pytest.fixture
    def runner(self, predictor):
        return BatchRunner(
            model=predictor.model,
            readout=predictor.readout,
            collate=partial(collate_prompts, predictor._collator),
            parts=predictor._parts,
            autocast=None,
            batch_size=2,
            batch_tokens=4096,
        )

    def run(self, runner, predictor, texts):
        batches = []
        encoded = predictor._encoder.encode([{"prompt": text} for text in texts])
        return runner.run(encoded, batches.append).predictions.numpy(), batches

    def test_is_run_once_for_all_chunks(self, runner, predictor, prefixes):
        texts = [f"{BEGINNING}{item} is" for item in ("tea", "a cup of hot tea", "soup", "item 27", "1")]
        alone = np.concatenate([predictor.predict([text]) for text in texts])
        assert not prefixes
        for some in (slice(0, 3), slice(3, 5)):
            found, batches = self.run(runner, predictor, texts[some])
            np.testing.assert_allclose(found, alone[some], atol=1e-5)
            assert sum(batches) == len(found)
        assert len(prefixes) == 1

    def test_is_run_anew_where_it_no_longer_holds(self, runner, predictor, prefixes):
        other = "Say from 0 to 4 how much you would like to have some of the following again: "
        for beginning in (BEGINNING, other):
            texts = [f"{beginning}{item} is" for item in ("tea", "soup", "cake")]
            alone = np.concatenate([predictor.predict([text]) for text in texts])
            np.testing.assert_allclose(self.run(runner, predictor, texts)[0], alone, atol=1e-5)
        assert len(prefixes) == 2

    def test_a_short_one_is_not_worth_a_run(self, runner, predictor, prefixes):
        self.run(runner, predictor, ["item 1", "item 2"])
        assert not prefixes
