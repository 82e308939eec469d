import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_peft import NumberGrid
from raft_peft.data.prompts import PromptEncoder


class TestNumberGrid:
    def test_numbers_are_written_without_trailing_zeros(self):
        grid = NumberGrid([1, 2.0, 0.5, -0.0, 1e-7, 0.1 + 0.2, np.float32(0.1), 1e6, -3])
        assert grid.texts == ("1", "2", "0.5", "0", "0.0000001", "0.3", "0.1", "1000000", "-3")

    def test_a_mapping_gives_the_texts(self):
        grid = NumberGrid({1: "A", 2.5: "B"})
        assert (grid.values, grid.texts) == ((1.0, 2.5), ("A", "B"))

    def test_a_grid_of_a_grid_is_the_same(self):
        assert NumberGrid(NumberGrid({1: "A", 2: "B"})) == NumberGrid({1: "A", 2: "B"})

    @given(st.lists(st.floats(-1e9, 1e9).map(lambda x: float(f"{x:.12g}")), min_size=1, max_size=8, unique=True))
    def test_the_text_reads_back_as_the_value(self, values):
        assert [float(text) for text in NumberGrid(values).texts] == [value + 0.0 for value in values]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([], "empty. Give it at least one"),
            ({}, "empty. Give it at least one"),
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

    def test_spaced_values_have_the_same_number_of_decimals(self):
        tenths = NumberGrid.spaced(0, 5, 0.1)
        assert len(tenths) == 51
        assert tenths.texts[:3] == ("0.0", "0.1", "0.2")
        assert tenths.values[3] == 0.3
        assert NumberGrid.spaced(-0.1, 0.15, 0.05).texts == ("-0.10", "-0.05", "0.00", "0.05", "0.10", "0.15")
        assert NumberGrid.spaced(0, 2, 1).texts == ("0", "1", "2")
        assert NumberGrid.spaced(0, 2, 1, decimals=1).texts == ("0.0", "1.0", "2.0")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, 5, 0), "is empty"),
            ((5, 0, 0.1), "is empty"),
            ((0, 5, 0.3), "do not lead from 0 to 5"),
        ],
    )
    def test_what_cannot_be_spaced(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            NumberGrid.spaced(*arguments)
        with pytest.raises(ValueError, match=r"0 decimals cannot write steps of 0\.5"):
            NumberGrid.spaced(0, 5, 0.5, decimals=0)


class TestResolve:
    def test_a_space_and_its_digit_may_be_one_token(self, byte_level):
        resolved = NumberGrid([2, 3]).resolve(byte_level, "the score is")
        assert resolved.token_ids == tuple((byte_level.convert_tokens_to_ids(token),) for token in ("Ġ2", "Ġ3"))
        assert byte_level.decode(resolved.prompt_ids) == "the score is"

    def test_or_two_of_which_the_space_ends_the_prompt(self, sentencepiece):
        resolved = NumberGrid([2, 13]).resolve(sentencepiece, "the score is")
        one, two, three = sentencepiece.convert_tokens_to_ids(["1", "2", "3"])
        assert resolved.token_ids == ((two,), (one, three))
        assert sentencepiece.convert_ids_to_tokens(resolved.prompt_ids[-1]) == "▁"

    @pytest.mark.parametrize(
        ("prompt", "separator", "before"),
        [
            ("the score is", None, "the score is"),
            ("the score is\n", None, "the score is\n"),
            ("the score is", "\n", "the score is\n"),
            ("the score (", "", "the score ("),
        ],
    )
    def test_the_separator(self, byte_level, prompt, separator, before):
        resolved = NumberGrid([2, 3]).resolve(byte_level, prompt, separator=separator)
        number = " 2" if before == "the score is" else "2"
        assert byte_level.decode(resolved.prompt_ids) == before
        assert byte_level.decode(resolved.token_ids[0]) == number

    @pytest.mark.parametrize(
        ("options", "ended"),
        [
            ({}, (["1"], ["1", "0"], ["2"])),
            ({"number_end": "eos"}, (["1", "<eos>"], ["1", "0"], ["2"])),
            ({"number_end": "."}, (["1", "."], ["1", "0"], ["2"])),
            ({"number_end": "eos", "end_every_number": True}, (["1", "<eos>"], ["1", "0", "<eos>"], ["2", "<eos>"])),
        ],
    )
    def test_the_end_of_a_number(self, sentencepiece, options, ended):
        resolved = NumberGrid([1, 10, 2]).resolve(sentencepiece, "the score is", **options)
        assert tuple(sentencepiece.convert_ids_to_tokens(ids) for ids in resolved.token_ids) == ended

    def test_it_is_what_each_row_is_read_at(self, byte_level):
        grid = NumberGrid([1, 10, 2])
        [row] = PromptEncoder(byte_level, grid).encode([{"prompt": "Rate the item 7:"}])
        resolved = grid.resolve(byte_level, "Rate the item 7:")
        assert (list(resolved.prompt_ids), resolved.token_ids) == (row.input_ids, row.grid_token_ids)

    def test_a_number_that_merges_into_the_prompt(self, byte_level):
        message = re.escape(
            "The number '0' merges into the end of the prompt 'Rate the item 1': the tokenizer gives ['Ġ1'] without "
            "the number and ['Ġ10'] with it. End the prompt with a space or a new line, or set another separator."
        )
        with pytest.raises(ValueError, match=message):
            NumberGrid([0, 5]).resolve(byte_level, "Rate the item 1", separator="")

    def test_a_chat_is_to_be_rendered_first(self, byte_level):
        with pytest.raises(ValueError, match=r"is not a text\. For a chat, pass the text of"):
            NumberGrid([1, 2]).resolve(byte_level, [{"role": "user", "content": "Rate it."}])

    def test_a_grid_loads_neither_torch_nor_transformers(self):
        code = (
            "import sys, raft_peft; raft_peft.NumberGrid([1, 2]); "
            "print({'torch', 'transformers', 'datasets', 'raft_peft.grid.resolution'} & set(sys.modules))"
        )
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert loaded.strip() == "set()"
