import numpy as np
import pandas
import pytest
import torch

from raft_peft import NumberGrid
from raft_peft.grid import decimals_of, meant_number, number_text

TENTHS = ("0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1")


@pytest.mark.parametrize(
    "values",
    [
        torch.linspace(0, 1, 11),
        torch.linspace(0, 1, 11).tolist(),
        torch.linspace(0, 1, 11, dtype=torch.bfloat16),
        torch.linspace(0, 1, 11, dtype=torch.float64),
        np.linspace(0, 1, 11, dtype=np.float32),
        np.linspace(0, 1, 11, dtype=np.float16),
        pandas.Series(np.linspace(0, 1, 11), dtype="float32"),
        [np.float32(text) for text in TENTHS],
    ],
    ids=["torch", "list of float32", "bfloat16", "float64", "numpy", "float16", "series", "scalars"],
)
def test_a_grid_of_any_precision_is_written_as_meant(values):
    grid = NumberGrid(values)
    assert grid.texts == TENTHS
    assert grid.values == pytest.approx(list(map(float, TENTHS)), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "bfloat16"])
def test_the_text_is_of_the_same_number_and_short(dtype):
    for number in np.random.default_rng(0).normal(scale=50, size=300):
        value = torch.tensor(number, dtype=torch.bfloat16) if dtype == "bfloat16" else dtype(number)
        meant = meant_number(value)
        again = torch.tensor(meant, dtype=torch.bfloat16) if dtype == "bfloat16" else dtype(meant)
        assert again == value
        assert len(repr(meant).replace(".", "").strip("-0")) <= {np.float32: 9, np.float16: 5, "bfloat16": 4}[dtype]


def test_doubles_stay_as_they_are():
    for number in (
        0.1,
        1 / 3,
        2**-13,
        2**-20,
        3 * 2**-11,
        16777217.0,
        1e300,
        5e-324,
        1.401298464324817e-45,
        123456.789,
        float("inf"),
    ):
        assert meant_number(number) == number
    assert np.isnan(meant_number(float("nan")))


def test_a_column_of_float32_is_read_at_its_precision():
    third = float(np.float32(1 / 3))
    assert number_text(third) == "0.333333343267"
    assert meant_number(third, "float32") == 0.33333334
    assert meant_number(0.333251953125, "float16") == 0.3333


def test_decimals_of_a_float32():
    assert decimals_of(np.float32(0.05)) == 2
    assert NumberGrid.spaced(np.float32(0), np.float32(1), np.float32(0.5)).texts == ("0.0", "0.5", "1.0")


def test_a_tensor_of_several_numbers_is_no_grid():
    with pytest.raises(ValueError, match=r"tensor\(\[1., 1.\]\) is not a number"):
        NumberGrid(torch.ones(2, 2))
