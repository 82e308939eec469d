"""The group of each row, from a column or one name a row."""

import math

import numpy as np
import pytest

from raft_peft.prediction.calibrating.groups import group_name, grouped


def test_names_are_the_same_in_csv_and_elsewhere():
    found = [group_name(value, 0) for value in ("news", "3", 3, 3.0, np.int64(3), np.float32(0.5), True)]
    assert found == ["news", "3", "3", "3", "3", "0.5", "True"]
    for value in (None, "", " ", math.nan, math.inf, ["a"]):
        with pytest.raises(ValueError, match="Row 7 has no group: the column 'topic' holds"):
            group_name(value, 7, "topic")


def test_by_column_as_rows_are_read():
    rows = [{"prompt": "x", "topic": "a"}, {"prompt": "y", "topic": 2}, {"prompt": "z", "topic": "a"}]
    checked = []
    prompts, names = grouped(iter(rows), "topic", checked.append)
    assert names == []
    assert list(prompts) == rows
    assert (names, checked) == (["a", "2", "a"], ["a", "2"])


def test_one_name_a_prompt():
    prompts, names = grouped(["x", "y"], np.array(["a", "b"]))
    assert (prompts, names) == (["x", "y"], ["a", "b"])


@pytest.mark.parametrize(
    ("prompts", "groups", "message"),
    [
        (["x", "y"], ["a"], "`groups` has 1 names for 2 prompts"),
        (["x", "y"], ["a", None], "Row 1 has no group: `groups` holds None"),
        (["x"], "topic", "Row 0 is a prompt alone, and no group in the column 'topic'"),
        ([{"prompt": "x"}], "topic", r"Row 0 has the columns \['prompt'\], and no group in the column 'topic'"),
    ],
)
def test_rows_without_groups(prompts, groups, message):
    with pytest.raises(ValueError, match=message):
        list(grouped(prompts, groups)[0])
