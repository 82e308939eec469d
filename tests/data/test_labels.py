import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from raft_peft import NumberGrid
from raft_peft.data.labels import LabelColumn, label_range, read_labels

GRID = NumberGrid({1: "A", 2: "B", 3: "9"})


def read(**row):
    return read_labels([row], GRID, LabelColumn())[0]


def test_labels_are_floats():
    assert read(label=3) == 3.0
    assert isinstance(read(label=3), float)
    assert read(label=2.75) == 2.75


@pytest.mark.parametrize(
    ("completion", "value"),
    [("2.5", 2.5), (" 4\n", 4), (2, 2), ("A", 1), ("9", 3), ([{"role": "assistant", "content": "B"}], 2)],
)
def test_a_completion_stands_in_for_the_label(completion, value):
    assert read(completion=completion) == value


def test_the_label_goes_before_the_completion():
    assert read(label=1.5, completion="A") == 1.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": math.nan}, "label is nan"),
        ({"label": math.inf}, "label is inf"),
        ({"label": "3"}, "label '3' is not a number"),
        ({"label": None}, "label is missing"),
        ({"prompt": "x"}, r"label is missing. The row has the columns \['prompt'\], and no 'label'"),
        ({"label": True}, "label is True, and the grid is not 0 and 1"),
        ({"label": np.bool_(False)}, "label is False, and the grid is not 0 and 1"),
        ({"label": torch.tensor(True)}, "label is True, and the grid is not 0 and 1"),
        ({"completion": True}, "label is True, and the grid is not 0 and 1"),
        ({"label": torch.tensor([[1.0]])}, "holds tensor"),
        ({"label": 1j}, "is not a number"),
        ({"label": np.str_("3")}, "is not a number"),
        ({"completion": "good"}, "completion 'good' is not a number"),
        ({"completion": "nan"}, "label is nan"),
        ({"completion": []}, "is not a number"),
    ],
)
def test_what_is_no_label(row, message):
    with pytest.raises(ValueError, match=f"row 7: the .*{message.removeprefix('the ')}"):
        read_labels([row], GRID, LabelColumn(), first_row=7)


@pytest.mark.parametrize(
    "label",
    [
        Decimal("0.7"),
        Fraction(7, 10),
        np.float32(0.7),
        np.float16(0.7),
        torch.tensor(0.7),
        torch.tensor(0.7).bfloat16(),
    ],
    ids=lambda label: type(label).__name__,
)
def test_numbers_of_other_types(label):
    assert read(label=label) == 0.7


def test_booleans_are_the_numbers_of_a_grid_of_0_and_1():
    rows = [{"label": True}, {"label": np.bool_(False)}, {"completion": True}]
    assert read_labels(rows, NumberGrid({0: "no", 1: "yes"}), LabelColumn()) == [1, 0, 1]


def test_a_completion_stands_in_for_no_column_of_another_name():
    with pytest.raises(ValueError, match="and no 'stars': rename one, set `label_column`"):
        read_labels([{"completion": "2"}], GRID, LabelColumn("stars"))


@pytest.mark.parametrize(
    ("values", "renormalize", "expected"),
    [([1, 5], True, (1, 5)), ([1, 5], False, (0, 5)), ([-3, 3], False, (-3, 3)), ([-3, -1], False, (-3, 0))],
)
def test_what_a_grid_can_express(values, renormalize, expected):
    assert label_range(NumberGrid(values), renormalize=renormalize) == expected
