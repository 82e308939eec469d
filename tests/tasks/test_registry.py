import dataclasses
import subprocess
import sys

import pytest

from raft_peft.grid import NumberGrid
from raft_peft.tasks import TASKS, amazon_reviews, get_task, movielens, stsb, synthetic

MODULES = {
    "stsb": stsb,
    "stsb_1k": stsb,
    "amazon_wireless": amazon_reviews,
    "amazon_personal_care": amazon_reviews,
    "amazon_music": amazon_reviews,
    "movielens_1m": movielens,
    "synthetic": synthetic,
}


def sizes(dataset):
    return {name: len(split) for name, split in dataset.items()}


def test_every_task_is_on_the_grid_of_its_module():
    assert {name: task.grid for name, task in TASKS.items()} == {name: module.GRID for name, module in MODULES.items()}
    for name, task in TASKS.items():
        assert get_task(name) is task
        assert task.name == name
        assert task.description
        assert len(NumberGrid(task.grid)) > 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["stsb"].name = "other"


# The paper's Table 6, word by word. Fields are in braces; how they are separated the table does not show.
TABLE_6 = {
    stsb: (
        "What is the sentence similarity between the following two sentences measured on a scale of 0 to 5: "
        "{Sentence #1}, {Sentence #2}. The similarity measured on a scale of 0 to 5 with 0 being unrelated and 5 "
        "being related is equal to",
        {"sentence1": "{Sentence #1}", "sentence2": "{Sentence #2}"},
    ),
    amazon_reviews: (
        "product_category: {product category} product_title: {product title} review_date: {review date} "
        "review_headline: {review headline} review_body: {review body} Question: In a star rating of 1, 2, 3, 4, 5, "
        "the higher the better, what would be the star rating of the above review? Please only give me the final "
        "rating and I do not need any explanations.",
        {
            "category": "{product category}",
            "product": "{product title}",
            "date": "{review date}",
            "headline": "{review headline}",
            "body": "{review body}",
        },
    ),
    movielens: (
        "Instruction: Predict the rating of a target movie based on the user's historical movie ratings. Rating "
        "History: {Rating history} Candidate Item: {Candidate Item}. Output:",
        {"history": "{Rating history}", "movie": "{Candidate Item}"},
    ),
    synthetic: (
        "The task is to provide your best estimate for 'output score' based on 'input score'. Please provide that and "
        "only that, without any additional text. Input score: {Input score}. Output score:",
        {"x": "{Input score}"},
    ),
}


@pytest.mark.parametrize("module", TABLE_6, ids=lambda module: module.__name__)
def test_the_prompts_are_those_of_the_paper(module):
    wording, fields = TABLE_6[module]
    assert module.PROMPT.format(**fields).split() == wording.split()


def test_the_sizes_are_those_of_the_paper():
    """Its Table 7; those of STS-B follow from the dataset, see tests/tasks/test_stsb.py."""
    assert amazon_reviews.SPLIT_SIZES == {"train": 10_000, "validation": 1_500, "test": 1_500}
    assert movielens.SPLIT_SIZES == {"train": 797_758, "validation": 10_145, "test": 10_145}
    assert synthetic.SPLIT_SIZES == {"train": 10_000, "validation": 1_000, "test": 1_000}


def test_an_unknown_task():
    with pytest.raises(ValueError, match=r"no task 'sts-b'. Choose one of: stsb, stsb_1k, amazon_wireless, .*synthet"):
        get_task("sts-b")


def test_the_registry_loads_no_loader():
    code = "import raft_peft.tasks, sys; print({'datasets', 'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_stsb_1k(tmp_path):
    (tmp_path / "dev.csv").write_text("a,b,4.5\n")
    (tmp_path / "train.csv").write_text("".join(f"Sentence {i},b,{i % 6}\n" for i in range(1200)))
    whole, part, again, other = (
        get_task(name).load(tmp_path, seed) for name, seed in [("stsb", 3), *[("stsb_1k", 3)] * 2, ("stsb_1k", 4)]
    )
    assert sizes(whole) == {"train": 1020, "validation": 180, "test": 1}
    assert sizes(part) == {"train": 1000, "validation": 180, "test": 1}
    assert part["validation"][:] == whole["validation"][:]
    assert set(part["train"]["prompt"]) < set(whole["train"]["prompt"])
    assert part["train"][:] == again["train"][:]
    assert part["train"][:] != other["train"][:]

    (tmp_path / "train.csv").write_text("".join(f"Sentence {i},b,{i % 6}\n" for i in range(1000)))
    with pytest.raises(ValueError, match="has 850 pairs here, fewer than 1,000"):
        get_task("stsb_1k").load(tmp_path, 0)


def test_synthetic():
    task = get_task("synthetic")
    first, again, other = (task.load("no such path", seed) for seed in (0, 0, 1))
    assert sizes(first) == {"train": 10_000, "validation": 1_000, "test": 1_000}
    assert first["train"][:] == again["train"][:]
    draws = [tuple(split["x"][:1000]) for dataset in (first, other) for split in dataset.values()]
    assert len(set(draws)) == 6


@pytest.mark.parametrize(
    ("name", "loader", "arguments"),
    [
        ("amazon_wireless", "load_amazon_reviews", ("wireless", "file")),
        ("amazon_personal_care", "load_amazon_reviews", ("personal_care", "file")),
        ("amazon_music", "load_amazon_reviews", ("music", "file")),
        ("movielens_1m", "load_movielens", ("file",)),
    ],
)
def test_what_the_loader_is_asked_for(monkeypatch, name, loader, arguments):
    monkeypatch.setattr(MODULES[name], loader, lambda *args, **options: (args, options))
    assert get_task(name).load("file", 7) == (arguments, {"seed": 7})
