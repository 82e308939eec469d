import math
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from raft_peft import NumberGrid
from raft_peft.grid import Context, resolve_in_contexts, single_token_ids

ENDINGS = {
    "word": "the score is",
    "space": "the score is ",
    "colon": "score:",
    "newline": "score:\n",
    "bracket": "score (",
    "digit": "the score of item 27",
}
TOKENIZERS = ["byte_level", "sentencepiece", "word_level", "smollm2_tokenizer", "gemma3_tokenizer"]


class TestNumberGrid:
    def test_numbers_are_written_without_trailing_zeros(self):
        grid = NumberGrid([1, 2.0, 0.5, -0.0, 1e-7, 0.1 + 0.2, np.float32(0.1), 1e6, -3])
        assert grid.texts == ("1", "2", "0.5", "0", "0.0000001", "0.3", "0.10000000149", "1000000", "-3")

    def test_a_mapping_gives_the_texts(self):
        grid = NumberGrid({1: "A", 2.5: "B"})
        assert (grid.values, grid.texts) == ((1.0, 2.5), ("A", "B"))

    def test_a_grid_of_a_grid_is_the_same(self):
        assert NumberGrid(NumberGrid({1: "A", 2: "B"})) == NumberGrid({1: "A", 2: "B"})

    @given(st.lists(st.floats(-1e9, 1e9).map(lambda x: float(f"{x:.12g}")), min_size=2, max_size=8, unique=True))
    def test_the_text_reads_back_as_the_value(self, values):
        assert [float(text) for text in NumberGrid(values).texts] == [value + 0.0 for value in values]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([], "at least two"),
            ([3], "at least two"),
            ([1, 2, 1.0], "value 1.0 more than once"),
            ({1: "A", 2: "A"}, "text 'A' more than once"),
            ([1, math.nan], "not finite"),
            ([1, math.inf], "not finite"),
            ([1, "x"], "not a number"),
            ([1, None], "not a number"),
            ({1: "", 2: "B"}, "not empty"),
            ({1: 1, 2: 2}, "must be a text"),
            ("12345", "list of numbers"),
            (5, "list of numbers"),
        ],
    )
    def test_what_cannot_be_a_grid(self, values, message):
        with pytest.raises(ValueError, match=message):
            NumberGrid(values)


class TestResolve:
    def test_gpt2_style_puts_the_space_into_the_number(self, byte_level):
        resolved = NumberGrid([2, 3]).resolve(byte_level, "the score is")
        assert byte_level.convert_ids_to_tokens([ids[0] for ids in resolved.token_ids]) == ["Ġ2", "Ġ3"]
        assert byte_level.decode(resolved.prompt_ids) == "the score is"

    @pytest.mark.parametrize("name", ["sentencepiece", "smollm2_tokenizer", "gemma3_tokenizer"])
    def test_a_lone_space_ends_the_prompt(self, name, request):
        tokenizer = request.getfixturevalue(name)
        resolved = NumberGrid([2, 3]).resolve(tokenizer, "the score is")
        assert tokenizer.convert_ids_to_tokens([ids[0] for ids in resolved.token_ids]) == ["2", "3"]
        assert tokenizer.convert_ids_to_tokens(resolved.prompt_ids[-1]) in ("Ġ", "▁")

    @pytest.mark.parametrize(
        ("name", "prompt", "ids"),
        [
            ("smollm2_tokenizer", "Score:", (32, 33, 41)),
            ("gemma3_tokenizer", "Score:", (236771, 236770, 236819)),
            ("gemma3_tokenizer", "Score:\n", (236771, 236770, 236819)),
        ],
    )
    def test_known_ids_of_real_vocabularies(self, name, prompt, ids, request):
        resolved = NumberGrid([0, 1, 9]).resolve(request.getfixturevalue(name), prompt)
        assert resolved.token_ids == tuple((one,) for one in ids)

    def test_leading_special_tokens_stay_in_front(self, gemma3_tokenizer):
        resolved = NumberGrid([1, 2]).resolve(gemma3_tokenizer, "Score:")
        assert resolved.prompt_ids[0] == gemma3_tokenizer.bos_token_id
        assert resolved.prompt_ids.count(gemma3_tokenizer.bos_token_id) == 1

    def test_a_bos_written_into_the_prompt_is_not_doubled(self, gemma3_tokenizer):
        resolved = NumberGrid([1, 2]).resolve(gemma3_tokenizer, "<bos>Score:")
        assert resolved.prompt_ids.count(gemma3_tokenizer.bos_token_id) == 1

    def test_trailing_special_tokens_never_stand_before_the_number(self, byte_level):
        tokenizer = deepcopy(byte_level)
        eos = tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<eos> $A <eos>", special_tokens=[("<eos>", eos)]
        )
        assert tokenizer("score").input_ids[-1] == eos
        resolved = NumberGrid([1, 2]).resolve(tokenizer, "score is")
        assert resolved.prompt_ids[0] == eos
        assert eos not in resolved.prompt_ids[1:]

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("name", TOKENIZERS)
    def test_the_ids_are_those_of_the_whole_sentence(self, name, ending, request):
        """Independent check: prompt ids + number ids are the tokenizer's own encoding of the written-out sentence."""
        tokenizer = request.getfixturevalue(name)
        grid, prompt = NumberGrid(range(10)), ENDINGS[ending]
        resolved = grid.resolve(tokenizer, prompt)
        space = "" if ending in ("space", "newline") else " "
        for text, ids in zip(grid.texts, single_token_ids(grid, tokenizer, resolved), strict=True):
            assert [*resolved.prompt_ids, ids] == tokenizer(prompt + space + text).input_ids
            assert tokenizer.decode([ids]).strip() == text

    def test_several_tokens_are_resolved_but_not_single(self, smollm2_tokenizer):
        grid = NumberGrid([1, 10])
        resolved = grid.resolve(smollm2_tokenizer, "Score:")
        assert [len(ids) for ids in resolved.token_ids] == [1, 2]
        with pytest.raises(ValueError, match=r"grid value 10 .* is 2 tokens .*'1', '0'.*one token"):
            single_token_ids(grid, smollm2_tokenizer, resolved)

    def test_a_number_that_merges_into_the_prompt_names_the_tokens_and_the_cure(self, byte_level):
        # Without a separator "2" + "7" is the one number 27 of the vocabulary.
        with pytest.raises(ValueError, match=r"merges into the end of the prompt.*'Ġ27'.*End the prompt with a space"):
            NumberGrid([7, 8]).resolve(byte_level, "of item 2", separator="")

    def test_a_value_that_the_tokenizer_does_not_know(self, word_level):
        with pytest.raises(ValueError, match="no token for the grid text '77777'"):
            NumberGrid([1, 77777]).resolve(word_level, "score is")

    def test_two_values_of_the_same_token(self, byte_level):
        tokenizer = deepcopy(byte_level)
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        with pytest.raises(ValueError, match="'A' and 'a' are the same tokens"):
            NumberGrid({1: "A", 2: "a"}).resolve(tokenizer, "score is")

    @pytest.mark.parametrize("prompt", ["", "   ", "\n"])
    def test_an_empty_prompt(self, byte_level, prompt):
        with pytest.raises(ValueError, match="prompt is empty"):
            NumberGrid([1, 2]).resolve(byte_level, prompt)

    def test_many_contexts_give_what_each_gives_alone(self, smollm2_tokenizer):
        grid = NumberGrid([1, 2])
        contexts = [Context(text, " ") for text in ("a:", "a longer one:", "", "b:")]
        together = resolve_in_contexts(grid, smollm2_tokenizer, contexts)
        assert isinstance(together[2], ValueError)
        for index in (0, 1, 3):
            assert together[index] == grid.resolve(smollm2_tokenizer, contexts[index].text)
