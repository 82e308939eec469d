import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_peft import NumberGrid


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
