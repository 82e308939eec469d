import pytest
from datasets import Dataset, DatasetDict

from raft_peft.compare import CompareSettings
from raft_peft.compare.rows import check_dataset, kept_rows, labels_of, load_rows


def test_prompts_of_tasks_and_of_files_as_chats(tmp_path):
    of_task = load_rows(CompareSettings(model="m", output_dir="out", task="synthetic", chat=True))
    (message,) = of_task["test"][0]["prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("The task is to provide your best estimate")

    path = tmp_path / "rows.csv"
    path.write_text("text,stars\n" + "".join(f"text {number},{number % 5 + 1}\n" for number in range(20)))
    settings = CompareSettings(
        model="m",
        output_dir="out",
        train_file=str(path),
        grid="1..5",
        prompt_template="Rate {text}.",
        system="Be fair.",
        label_column="stars",
    )
    rows = load_rows(settings)
    assert {name: len(split) for name, split in rows.items()} == {"train": 14, "validation": 3, "test": 3}
    system, user = rows["train"][0]["prompt"]
    assert system == {"role": "system", "content": "Be fair."}
    assert user["content"] == f"Rate {rows['train'][0]['text']}."
    path.write_text("prompt,label\n" + "".join(f"text {number},{number % 5}\n" for number in range(20)))
    usual = CompareSettings(model="m", output_dir="out", train_file=str(path), grid="1..5")
    assert load_rows(usual)["test"].column_names == ["prompt", "label"]


def test_ratings_are_kept_and_their_means_are_the_labels():
    settings = CompareSettings(model="m", output_dir="out")
    split = Dataset.from_dict({"prompt": ["a", "b"], "label": [[1, 2], [4]]})
    whole = DatasetDict(dict.fromkeys(("train", "validation", "test"), split))
    kept = kept_rows(whole, settings)
    assert kept["train"]["label"][:] == [[1, 2], [4]]
    assert labels_of(kept["test"]) == [1.5, 4]
    whole["test"] = Dataset.from_dict({"prompt": ["a", "b"], "label": [[1], []]})
    with pytest.raises(ValueError, match=r"The test split .* in the rows \[1\]: the label is an empty list"):
        kept_rows(whole, settings)


def test_reasonings_are_refused():
    split = Dataset.from_dict({"prompt": ["a", "b"], "label": [1, 2], "reasoning": [None, None]})
    whole = DatasetDict(dict.fromkeys(("train", "validation", "test"), split))
    check_dataset(whole)
    whole["test"] = split.map(lambda row: {"reasoning": "It is so."})
    with pytest.raises(ValueError, match=r"The test split has a column `reasoning`.* Leave the column out"):
        check_dataset(whole)
