import numpy as np
import pandas
import pyarrow
import pytest
from datasets import Dataset, DatasetDict

from raft_peft.data.rows import as_dataset, as_rows, each

ROWS = [{"prompt": f"item {number}", "label": number / 2} for number in range(2500)]
FRAME = pandas.DataFrame(ROWS)
DATASET = Dataset.from_list(ROWS)


@pytest.mark.parametrize(
    "holder",
    [
        ROWS,
        (row for row in ROWS),
        FRAME,
        FRAME.set_index("label", drop=False),
        pyarrow.Table.from_pylist(ROWS),
        pyarrow.RecordBatch.from_pylist(ROWS),
        DATASET,
        DATASET.with_format("torch"),
        DATASET.with_format("pandas"),
        DATASET.with_transform(lambda batch: batch),
        DATASET.to_iterable_dataset(),
        DATASET.to_iterable_dataset().with_format("arrow"),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_the_rows_of_whatever_holds_them(holder):
    assert list(each(holder)) == ROWS


@pytest.mark.parametrize(
    "column",
    [
        FRAME["prompt"],
        pyarrow.array(FRAME["prompt"]),
        DATASET["prompt"],
        np.array(FRAME["prompt"]),
        tuple(FRAME["prompt"]),
    ],
    ids=lambda column: type(column).__name__,
)
def test_the_items_of_a_column(column):
    assert list(as_rows(column)) == [{"prompt": row["prompt"]} for row in ROWS]


def test_what_pandas_calls_missing_is_none():
    frame = pandas.DataFrame({"prompt": ["a", None], "label": [1.5, float("nan")], "tools": [[{"name": "x"}], None]})
    assert list(each(frame)) == [
        {"prompt": "a", "label": 1.5, "tools": [{"name": "x"}]},
        {"prompt": None, "label": None, "tools": None},
    ]


@pytest.mark.parametrize(
    ("holder", "message"),
    [
        ("one prompt", "must be a list of prompts"),
        ({"prompt": "a"}, "must be a list of prompts"),
        ({"prompt": "a", "label": 1.0, "tags": ["x"]}, "must be a list of prompts"),
        ({"input_ids": [[1, 2], [3]]}, "a dict of the columns 'input_ids'.*Dataset.from_dict"),
        (DatasetDict({"train": DATASET, "test": DATASET}), r"datasets 'train', 'test'. Pass one of them: datasets\['"),
        ({"a", "b"}, "a set, which has no order"),
        (3, "a int, which cannot be read one by one"),
        (pandas.DataFrame([["a", "b"]], columns=["prompt", "prompt"]), "two columns of the name 'prompt'"),
        (pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]), "two columns of the name 'prompt'"),
        ([{"role": "user", "content": "a"}], "must be a list of chats"),
    ],
)
def test_what_holds_no_rows_in_an_order(holder, message):
    with pytest.raises(ValueError, match=message):
        list(as_rows(holder))


def test_rows_become_a_dataset():
    rows = [{"prompt": "a"}, {"prompt": "b", "label": 1.0}]
    assert list(as_dataset(rows, "dev")) == [{"prompt": "a", "label": None}, {"prompt": "b", "label": 1.0}]
    assert as_dataset(DATASET, "dev") is DATASET
    with pytest.raises(ValueError, match=r"The rows of the dev dataset do not fit into one table: .* of one type"):
        as_dataset([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}], "dev")
    with pytest.raises(ValueError, match=r"The dev dataset cannot be read\. The rows are a dict of the datasets 'a'"):
        as_dataset({"a": DATASET}, "dev")
