import pytest

from raft_peft.tasks.stsb import PROMPT, load_stsb


@pytest.fixture
def folder(tmp_path):
    train = "".join(f'"Sentence {i}, with a comma","A ""quoted"" one",{i % 11 / 2}\n' for i in range(100))
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "dev.csv").write_text("NA,null,4.5\nMärz,Mars,0.0\n")
    return tmp_path


def test_the_splits_and_the_prompt(folder):
    dataset = load_stsb(folder)
    assert {name: len(split) for name, split in dataset.items()} == {"train": 85, "validation": 15, "test": 2}
    assert dataset["test"][0] == {"prompt": PROMPT.format(sentence1="NA", sentence2="null"), "label": 4.5}
    assert "März, Mars. The similarity" in dataset["test"][1]["prompt"]
    assert any('Sentence 7, with a comma, A "quoted" one.' in prompt for prompt in dataset["train"]["prompt"])
    assert not set(dataset["train"]["prompt"]) & set(dataset["validation"]["prompt"])


def test_the_sizes_of_the_paper_but_for_one_pair(folder):
    (folder / "train.csv").write_text("".join(f"Sentence {i},b,{i % 6}\n" for i in range(5749)))
    dataset = load_stsb(folder)
    assert (len(dataset["train"]), len(dataset["validation"])) == (4886, 863)  # in its Table 7: 4,887 and 863


def test_the_split_follows_the_seed(folder):
    first, again, other = (load_stsb(folder, seed=seed)["validation"]["prompt"][:] for seed in (0, 0, 1))
    assert first == again != other


def test_a_missing_file(folder):
    (folder / "dev.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev.csv is missing"):
        load_stsb(folder)
