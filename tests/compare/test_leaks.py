import pytest
from datasets import Dataset, DatasetDict

from raft_peft.compare.leaks import find_leaks


def splits(train, validation, test):
    rows = {"train": train, "validation": validation, "test": test}
    return DatasetDict({name: Dataset.from_dict({"prompt": p, "label": [0.0] * len(p)}) for name, p in rows.items()})


def test_prompts_that_differ_in_case_and_white_space_alone_are_the_same():
    data = splits(["a b", "A  b\n", "other", "a b c"], ["fine"], ["x", "a B", " a b", "y"])
    kept, (leak,) = find_leaks(data, drop=False)
    assert (leak.split, leak.rows, leak.of_rows, leak.test_rows, leak.of_test_rows) == ("train", 2, 4, 2, 4)
    assert (leak.row, leak.test_row, leak.prompt, leak.dropped) == (0, 1, "a B", False)
    assert (
        "2 of the 4 train rows have the prompt of a test row (2 of 4), such as row 0 that of test row 1: 'a B'"
        in str(leak)
    )
    assert "seems better" in str(leak)
    assert kept["train"]["prompt"][:] == data["train"]["prompt"][:]


def test_they_are_removed_from_train_and_validation_and_never_from_the_test():
    chat = [{"role": "user", "content": "Rate  this"}]
    data = splits([chat, [{"role": "user", "content": "b"}]], [chat, chat, [{"role": "user", "content": "c"}]], [chat])
    kept, leaks = find_leaks(data, drop=True)
    assert {name: len(rows) for name, rows in kept.items()} == {"train": 1, "validation": 1, "test": 1}
    assert [leak.split for leak in leaks] == ["train", "validation"]
    assert leaks[0].prompt == "user: Rate  this" and "They were removed from the train rows." in str(leaks[0])
    with pytest.raises(ValueError, match="All train rows have the prompt of a test row"):
        find_leaks(splits(["a"], ["b"], ["a"]), drop=True)


def test_nothing_in_common():
    assert find_leaks(splits(["a"], ["b"], ["c"]), drop=True)[1] == []
