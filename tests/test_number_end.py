import pytest

from raft_peft import NumberGrid
from raft_peft.number_end import NumberEnd
from raft_peft.resolution import resolve

GRID = NumberGrid([1, 10, 2])


def test_the_end_of_a_turn_is_that_of_the_chat_template(smollm2_tokenizer):
    end = NumberEnd.of("end_of_turn", smollm2_tokenizer)
    assert smollm2_tokenizer.convert_ids_to_tokens(end.token_id) == "<|im_end|>"


def test_a_token_follows_the_numbers_that_others_begin_with(smollm2_tokenizer):
    eos = smollm2_tokenizer.eos_token_id
    end = NumberEnd.of("eos", smollm2_tokenizer)
    assert resolve(GRID, smollm2_tokenizer, "Score:", number_end=end).token_ids == ((33, eos), (33, 32), (34,))
    every = NumberEnd.of("eos", smollm2_tokenizer, every_number=True)
    assert resolve(GRID, smollm2_tokenizer, "Score:", number_end=every).token_ids == (
        (33, eos),
        (33, 32, eos),
        (34, eos),
    )


def test_a_text_follows_as_the_tokenizer_writes_it(smollm2_tokenizer):
    end = NumberEnd.of(".", smollm2_tokenizer)
    resolved = resolve(GRID, smollm2_tokenizer, "Score:", number_end=end)
    assert list(resolved.prompt_ids + resolved.token_ids[0]) == smollm2_tokenizer("Score: 1.").input_ids
    assert resolved.token_ids[1:] == ((33, 32), (34,))


def test_a_text_that_stands_in_a_number_is_refused(smollm2_tokenizer):
    end = NumberEnd.of(".", smollm2_tokenizer)
    with pytest.raises(ValueError, match=r"'1' with its end .* is the beginning of another.*number_end"):
        resolve(NumberGrid([1, 1.5]), smollm2_tokenizer, "Score:", number_end=end)


def test_ends_that_the_tokenizer_lacks(byte_level):
    with pytest.raises(ValueError, match="no chat template"):
        NumberEnd.of("end_of_turn", byte_level)
