import numpy as np
import pytest
import torch

from raft_peft import NumberGrid
from raft_peft.data.prompts import PromptEncoder
from raft_peft.data.token_rows import ids_of_prompt

PROMPT = "the score is"


@pytest.fixture
def ids(tokenizer):
    return tokenizer(PROMPT).input_ids


def read(tokenizer, ids, mask=None):
    row = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    return ids_of_prompt(row, tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_encoded_as_their_text(tokenizer, side):
    padded = tokenizer([PROMPT], padding="max_length", max_length=20, padding_side=side)
    encoder = PromptEncoder(tokenizer, NumberGrid(range(5)))
    row = {name: padded[name][0] for name in ("input_ids", "attention_mask")}
    assert encoder.encode([row]) == encoder.encode([{"prompt": PROMPT}])


def test_masked_tokens_are_left_out_unsaid(tokenizer, ids):
    assert read(tokenizer, [7, 7, *ids, 8], [0, 0, *[1] * len(ids), 0]) == (ids, False)


def test_padding_and_ends_that_nothing_masks_are_taken_off(tokenizer, ids):
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    for padded in ([pad, pad, *ids], [pad, *ids], [*ids, pad, pad], [*ids, eos], [*ids, eos, pad], [pad, *ids, eos]):
        assert read(tokenizer, padded) == (ids, True)
        assert read(tokenizer, padded, [1] * len(padded)) == (ids, True)


def test_the_token_with_which_texts_begin_is_no_padding(tokenizer, ids):
    tokenizer.pad_token = tokenizer.bos_token = tokenizer.eos_token
    begin = tokenizer.eos_token_id
    assert read(tokenizer, [begin, *ids]) == ([begin, *ids], False)
    # This tokenizer puts none in front, so several are padding.
    assert read(tokenizer, [begin, begin, *ids]) == (ids, True)


def test_a_token_that_stands_for_unknown_ones_is_no_padding(tokenizer, ids):
    tokenizer.pad_token = tokenizer.unk_token
    unknown = tokenizer.unk_token_id
    assert read(tokenizer, [unknown, unknown, *ids, unknown]) == ([unknown, unknown, *ids, unknown], False)


@pytest.mark.parametrize("make", [torch.tensor, np.array, tuple])
def test_ids_of_other_types(tokenizer, ids, make):
    assert read(tokenizer, make(ids), make([1] * len(ids))) == (ids, False)


@pytest.mark.parametrize(
    ("given", "mask", "message"),
    [
        ([], None, "input_ids are empty"),
        ([1, 1], None, "are only padding"),
        ([5, 6], [0, 0], "is 0 everywhere"),
        ([5, 6, 7], [1, 0, 1], "masks tokens inside the prompt"),
        ([5, 6, 7], [1, 1], "3 input_ids and an attention_mask of 2"),
        ([[5, 6]], None, "must be a flat list of integers"),
        ([5.5], None, "must be a flat list of integers"),
    ],
)
def test_ids_that_are_no_prompt(tokenizer, given, mask, message):
    with pytest.raises(ValueError, match=message):
        read(tokenizer, given, mask)
