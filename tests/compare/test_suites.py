"""The paper's tables as suites: what they compare, and each of them at a tiny size."""

import csv

import pytest
from conftest import make_tiny_llama
from datasets import Dataset, DatasetDict

from raft_peft.compare import CompareSettings, compare_methods
from raft_peft.compare.compared_method import ComparedMethod, split_methods
from raft_peft.compare.lines import METRICS, Line
from raft_peft.compare.settings import QUICK
from raft_peft.compare.suites import SUITES, get_suite
from raft_peft.compare.table import predictions_table
from raft_peft.tasks import TASKS
from raft_peft.training.recipes import RECIPES


def methods(name):
    return [ComparedMethod.parse(label) for label in get_suite(name).methods]


def grids(name):
    return [dict(method.grid) for method in methods(name)]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_names_what_there_is_and_the_figures_of_its_lines(name):
    suite = get_suite(name)
    settings = CompareSettings("m", "o", suite=name)
    assert [method.label for method in settings.compared_methods()] == list(suite.methods)
    assert settings.tasks() == list(suite.tasks)
    assert (settings.max_steps, settings.recipe) == (RECIPES[suite.recipe].max_steps, suite.recipe)
    lines = {f"{method}, {way}" for method in suite.methods for way in ("decoded", "RAIL")} | set(suite.methods)
    assert set(suite.tasks) <= set(TASKS)
    assert set(suite.figures) == set(suite.tasks)
    for figures in suite.figures.values():
        assert set(figures) <= lines


def test_grids_of_the_papers_tables():
    digits = {y: str(y) for y in range(1, 6)}
    reversed_digits = {1: "5", 2: "4", 3: "3", 4: "2", 5: "1"}
    assert grids("table13") == [digits, {5: "5"}, {1: "1", 9: "9"}, {4: "4", 5: "5"}, {7: "7", 8: "8", 9: "9"}]
    assert [list(grid.values()) for grid in grids("table14")] == [
        ["1", "2", "3", "4", "5"],
        ["a", "b", "c", "d", "e"],
        ["5", "4", "3", "2", "1"],
        ["January", "February", "March", "April", "May"],
    ]
    assert grids("table20")[4] == reversed_digits
    assert [list(grid.values()) for grid in grids("table20")[2:4]] == [list("123456789"), list("bcdef")]
    assert list(grids("table20")[5].values()) == ["Jan.", "Feb.", "Mar.", "Apr.", "May"]
    assert [(list(method.grid.values), method.token_rows) for method in methods("table18")] == [
        ([1, 2, 3, 4, 5], "pretrained"),
        ([1, 2, 3, 4, 5], "random"),
        ([5], "pretrained"),
        ([5], "random"),
    ]
    assert [len(method.grid) for method in methods("table19")[::4]] == [101, 51, 26, 11, 6]
    assert {(method.name, method.number_tokens) for method in methods("table19")} == {
        (name, init) for name in ("ce", "raft") for init in ("first", "average")
    }


def test_zero_shot_methods_of_table_3_are_greedy_32_samples_and_exact():
    zero_shot = [(method.name, method.options) for method in methods("table3") if not method.trains]
    assert zero_shot == [("zero_shot", {}), ("rail", {"num_samples": 32}), ("rail", {})]
    assert get_suite("table3").figures["stsb"]["rail:num_samples=32"] == "2B 1.05, 9B 1.29"
    assert get_suite("table19").figures["stsb"]["raft:grid=0..5..1.0:number_tokens=average"] == "1B 0.61 ± 0.01"


def test_what_is_given_counts_more_than_quick_suite_and_recipe():
    suite = CompareSettings("m", "o", suite="table18")
    assert (suite.max_steps, suite.eval_steps, suite.keep, suite.seeds) == (5_000, 200, "last", 3)
    assert suite.per_device_train_batch_size == 64
    assert suite.rates() == [1e-4, 1e-5, 1e-6]
    quick = CompareSettings("m", "o", suite="table18", quick=True, max_steps=7, task="stsb_1k")
    assert (quick.max_steps, quick.eval_steps, quick.seeds, quick.tasks()) == (7, QUICK["eval_steps"], 1, ["stsb_1k"])
    assert quick.rates() == [1e-5]
    assert quick.one_process
    own = CompareSettings("m", "o", suite="table13", train_file="a.csv", grid="1..5", recipe="lora", methods="raft")
    assert (own.tasks(), own.max_steps, own.methods) == ([], 300, "raft")


def test_methods_between_semicolons():
    assert split_methods("raft:grid=1,9; raft:grid=0=no,1=yes") == ["raft:grid=1,9", "raft:grid=0=no,1=yes"]
    assert ComparedMethod.parse("raft:grid=0=no,1=yes:renormalize=true").options == {"renormalize": True}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, byte_level):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_llama(byte_level).save_pretrained(folder)
    byte_level.save_pretrained(folder)
    return str(folder)


def rows(count, offset):
    return Dataset.from_list(
        [
            {"prompt": f"Rate the item {index + offset} from 0 to 5: the score is", "label": (index * 7 % 11) / 2}
            for index in range(count)
        ]
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each recipe, so that suites share the runs that they have in common."""
    return {recipe: tmp_path_factory.mktemp(recipe) for recipe in RECIPES}


@pytest.mark.parametrize("name", SUITES)
def test_each_suite_runs(name, model_folder, folders, monkeypatch):
    monkeypatch.setattr("raft_peft.compare.report.draw_pictures", lambda *_: None)
    dataset = DatasetDict(train=rows(8, 0), validation=rows(3, 100), test=rows(3, 200))
    suite = get_suite(name)
    folder = folders[suite.recipe]
    settings = CompareSettings(model_folder, str(folder), suite=name, quick=True, max_steps=1)
    text = compare_methods(settings, dataset, range(1, 6))
    assert "failed" not in text
    with (folder / "table.csv").open() as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert set(next(iter(suite.figures.values()))) <= set(lines)
    if name == "table3":
        assert {"zero_shot, decoded", "rail:num_samples=32", "rail, exact", "ce, decoded", "ce, RAIL"} < set(lines)
    if name == "table18":
        # The rows of the tokens are no others but for the start of their numbers.
        assert lines["raft:grid=5"]["rmse_mean"] != lines["raft:grid=5:token_rows=random"]["rmse_mean"]


def test_a_table_shows_the_papers_figures_beside_ours(tmp_path):
    line = Line("raft", [{"rmse": 1.0, "mae": 0.5, "pearson": 0.9, "spearman": 0.8}], [])
    other = Line("rail", [dict.fromkeys(METRICS, float("nan"))], [])
    text = predictions_table([line, other], {"raft": "2B 0.47 ± 0.01"})
    head, _, first, second = text.splitlines()
    assert head.split("|")[-2].strip() == "RMSE in the paper"
    assert first.split("|")[-2].strip() == "2B 0.47 ± 0.01"
    assert second.split("|")[-2].strip() == "-"
