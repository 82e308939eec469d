import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List, Value

from raft_peft import NumberGrid
from raft_peft.data.labels import LabelColumn, read_labels, read_ratings, with_number, written_labels
from raft_peft.data.ratings import Ratings, check_ratings_within, of_one_kind, weights_of

GRID = NumberGrid([1, 2, 3, 4, 5])
THREE_OF_FOUR = Ratings((3.0, 4.0, 5.0), (0.25, 0.5, 0.25), 4)


@pytest.mark.parametrize(
    "raw",
    [
        [5, 4, 3, 4],
        (3.0, 4, 4, 5),
        np.array([3, 4, 4, 5]),
        torch.tensor([3, 4, 4, 5]),
        [torch.tensor(3), np.float32(4), 4, 5],
    ],
    ids=["list", "tuple", "array", "tensor", "scalars"],
)
def test_equal_ratings_are_one_value_with_their_share(raw):
    assert Ratings.of(raw) == THREE_OF_FOUR
    assert Ratings.of(raw).mean == 4


@pytest.mark.parametrize(
    "raw",
    [
        {3: 0.25, 4: 0.5, 5: 0.25},
        {"5": 0.25, "3.0": 0.25, "4": 0.5, "1": None},
        {3: 0.25, "3": 0, 4: 0.5, 5: 0.25, 1: 0.0},
    ],
)
def test_shares_have_no_number_of_raters(raw):
    assert Ratings.of(raw) == Ratings((3.0, 4.0, 5.0), (0.25, 0.5, 0.25), None)


def test_shares_as_people_write_them_are_divided_by_their_sum():
    rounded = Ratings.of({1: 0.333, 2: 0.333, 3: 0.333})
    assert rounded.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=1e-12)
    assert rounded.mean == pytest.approx(2, abs=1e-12)


def test_the_mean_of_ratings_is_exact():
    assert Ratings.of([1, 2, 2]).mean == 5 / 3
    assert Ratings.of([0.1] * 10).mean == 0.1


def read(label, grid=GRID, column=None):
    return read_ratings([{"label": label}], grid, column or LabelColumn(), first_row=7)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([], "the label is an empty list of ratings. Drop the row"),
        (["4", 5], "the rating '4' is not a number"),
        ([4, None], "the rating None is not a number"),
        ([3, float("nan")], "a rating is nan. Drop it"),
        ([True, False], "the rating is True, and the grid is not 0 and 1"),
        ([[3, 4]], r"the label holds \[3, 4\] as a rating. Write all ratings of a row in one list"),
        (np.ones((2, 2)), "the label holds array"),
        ({"3": 0.5, "4": 0.4}, "the label is .* shares sum to 0.9 and not to 1. Divide .* or write counts as a list"),
        ({3: 2, 4: 5}, "the label is .* whose shares sum to 7 and not to 1"),
        ({3: 1.5, 4: -0.5}, "the label has the share -0.5 of the rating 4. A share is a number from 0 to 1"),
        ({3: "all"}, "the label has the share 'all' of the rating 3"),
        ({"good": 1.0}, "the rating 'good' is not a number"),
        ({"inf": 1.0}, "a rating is inf"),
        ({}, "the label is an empty mapping of shares. Drop the row"),
        ({3: 0, 4: 0}, "the label is .* whose shares sum to 0 and not to 1"),
        ({"3": None}, "the label is missing. Fill the column 'label'"),
    ],
)
def test_what_are_no_ratings(label, message):
    with pytest.raises(ValueError, match=f"row 7: {message}"):
        read(label)


def test_all_rows_that_cannot_be_read_are_named():
    rows = [{"label": [3]}, {"label": []}, {"label": 2}, {"label": {"3": 2}}]
    with pytest.raises(ValueError, match=r"(?s)row 1: .*row 3: "):
        read_labels(rows, GRID, LabelColumn())


def test_labels_are_the_means_and_a_number_has_no_ratings():
    rows = [{"label": [3, 4, 4, 5]}, {"label": 2.5}, {"label": {"1": 0.5, "2": 0.5}}, {"completion": "3"}]
    assert read_labels(rows, GRID, LabelColumn()) == [4, 2.5, 1.5, 3]
    shares = Ratings((1.0, 2.0), (0.5, 0.5))
    assert read_ratings(rows, GRID, LabelColumn()) == [THREE_OF_FOUR, None, shares, None]


def test_booleans_of_several_raters_are_numbers_of_a_grid_of_0_and_1():
    assert read([True, False, True, True], NumberGrid([0, 1])) == [Ratings((0.0, 1.0), (0.25, 0.75), 4)]


def test_ratings_are_meant_as_their_column_writes_them():
    column = LabelColumn.of("label", List(Value("float32")))
    assert read([float(np.float32(3.8))], column=column) == [Ratings((3.8,), (1.0,), 1)]
    classes = LabelColumn.of("label", List(ClassLabel(names=["1", "5"])))
    assert read([0, 1], column=classes) == [Ratings((1.0, 5.0), (0.5, 0.5), 2)]
    with pytest.raises(ValueError, match="the rating is class 2, and there are 2 classes from 0"):
        read([0, 2], column=classes)


@pytest.mark.parametrize(
    ("feature", "may"),
    [(List(Value("int64")), True), ({"3": Value("float64")}, True), (Value("float32"), False), (None, True)],
)
def test_the_type_of_a_column_tells_whether_it_may_hold_ratings(feature, may):
    types = {} if feature is None else Features({"label": feature})
    assert LabelColumn.of("label", types.get("label")).may_hold_ratings == may


@pytest.mark.parametrize(
    ("text", "label"),
    [("[3, 4,4]", [3, 4, 4]), ('{"3": 0.5, "4": 0.5}', {"3": 0.5, "4": 0.5}), (" 3.5 ", 3.5), ("[]", [])],
)
def test_a_text_cell_is_read_as_what_it_writes(text, label):
    assert with_number({"label": text, "prompt": "a"}, "label") == {"label": label, "prompt": "a"}


@pytest.mark.parametrize("text", ["[3, 4", "true", "good", '"3"', "null"])
def test_a_text_that_writes_neither_number_nor_ratings_is_refused(text):
    row = with_number({"label": text}, "label")
    assert row == {"label": text}
    with pytest.raises(ValueError, match=r"row 0: the label .* is not a number"):
        read_labels([row], GRID, LabelColumn())


def test_ratings_outside_the_grid():
    ratings = [Ratings.of([1, 5]), None, Ratings.of([0, 3]), Ratings.of([3, 5.5])]
    check_ratings_within(ratings[:2], GRID)
    with pytest.raises(ValueError, match=r"(?s)row 12: the rating 0 lies outside 1 to 5.*row 13: the rating 5.5 lies"):
        check_ratings_within(ratings, GRID, first_row=10)


def test_a_row_weighs_as_many_as_it_has_raters():
    assert weights_of([THREE_OF_FOUR, None]) == [4, 1]
    with pytest.raises(ValueError, match=r"row 6: the label is a mapping of shares, .*Write the ratings as a list"):
        weights_of([None, Ratings.of({3: 1})], first_row=5)


def test_a_column_of_one_kind():
    assert of_one_kind([3, [4, 5], None, (1,), "x"]) == [[3], [4, 5], None, (1,), "x"]
    assert of_one_kind([3.0, {4: 0.5, "5": 0.5}, None]) == [{"3": 1.0}, {"4": 0.5, "5": 0.5}, None]
    assert of_one_kind([3.0, None, "x"]) == [3.0, None, "x"]


@pytest.mark.parametrize(("ends", "written"), [((1, 5), 2.67), ((0, 1000), 3), ((2, 2.1), 2.667)])
def test_the_mean_is_written_with_few_digits(ends, written):
    assert written_labels([Ratings.of([2, 3, 3]), 2.66666], NumberGrid(ends)) == [written, 2.66666]
