"""`compare` on a tiny model: real runs, one of them in a process of its own."""

import csv
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from safetensors.torch import load_file
from scipy import stats
from support.made_up_runs import begin, made_up_run

from raft_peft import GridDistribution
from raft_peft.cli.command import main
from raft_peft.compare import CompareSettings, compare_methods, comparison
from raft_peft.compare.report import write_report
from raft_peft.compare.results import best_rate, chosen_runs, ended_early, steps_to_convergence
from raft_peft.losses import CRPS
from raft_peft.tasks import TASKS

GRID = range(5)


def rows(count, offset):
    return Dataset.from_list(
        [
            {
                "prompt": f"Rate the item {index + offset} from 0 to 4: the score is",
                "label": float((index * 7) % 9) / 2,
            }
            for index in range(count)
        ]
    )


@pytest.fixture
def dataset():
    return DatasetDict(train=rows(24, 0), validation=rows(8, 100), test=rows(10, 200))


@pytest.fixture
def model_folder(tiny_llama, tokenizer, tmp_path):
    folder = tmp_path / "tiny"
    tiny_llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def settings(model, folder, **options):
    defaults = {
        "methods": "rail,raft",
        "seeds": 2,
        "learning_rates": "1e-3,1e-2",
        "max_steps": 4,
        "eval_steps": 2,
        "decisions": "mean,mode",
        "one_process": True,
    }
    return CompareSettings(model=model, output_dir=str(folder), **{**defaults, **options})


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_comparison_from_beginning_to_end(model_folder, tokenizer, dataset, tmp_path, capsys):
    """Two methods, rates, seeds and sizes; then a run is lost, a method that fails is added, and it goes on."""
    folder = tmp_path / "out"
    table = compare_methods(settings(model_folder, folder, train_sizes="12,all"), dataset, GRID)
    runs = {str(path.parent.relative_to(folder / "runs")) for path in folder.glob("runs/*/*/result.json")}
    tried = [
        json.loads((folder / "runs" / "raft" / f"lr{rate}-seed0" / "result.json").read_text())["validation_rmse"]
        for rate in ("0.001", "0.01")
    ]
    best = ("0.001", "0.01")[int(np.argmin(tried))]
    at_all = {"rail/seed0", "raft/lr0.001-seed0", "raft/lr0.01-seed0", f"raft/lr{best}-seed1"}
    assert runs == at_all | {f"raft/rows12-lr{best}-seed{seed}" for seed in range(2)}
    assert "6 of 6 runs are done." in capsys.readouterr().out

    # The table says what the predictions give.
    lines = {line["method"]: line for line in read_csv(folder / "table.csv") if line["train_rows"] == "24"}
    assert set(lines) == {"rail", "rail, mode", "raft", "raft, mode", "mean of the training labels"}
    mean = np.mean(dataset["train"]["label"])
    errors = mean - np.array(dataset["test"]["label"])
    assert float(lines["mean of the training labels"]["rmse_mean"]) == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert float(lines["mean of the training labels"]["mae_mean"]) == pytest.approx(np.mean(np.abs(errors)))
    assert lines["mean of the training labels"]["pearson_mean"] == "nan"
    by_seed, scores = [], []
    for seed in range(2):
        predictions = read_csv(folder / "predictions" / "raft" / f"seed{seed}.csv")
        predicted, label = (np.array([float(row[name]) for row in predictions]) for name in ("prediction", "label"))
        np.testing.assert_array_equal(label, dataset["test"]["label"])
        np.testing.assert_allclose(
            predicted, [sum(y * float(row[f"p({y})"]) for y in GRID) for row in predictions], atol=1e-5
        )
        probs = torch.tensor([[float(row[f"p({y})"]) for y in GRID] for row in predictions])
        distribution = GridDistribution(probs.log(), torch.tensor(list(GRID)).float())
        of_rows = CRPS()(distribution, torch.tensor(label))
        np.testing.assert_allclose([float(row["crps"]) for row in predictions], of_rows, atol=1e-5)
        scores.append(of_rows.mean().item())
        by_seed.append((np.sqrt(np.mean((predicted - label) ** 2)), stats.pearsonr(predicted, label).statistic))
    assert float(lines["raft"]["rmse_mean"]) == pytest.approx(np.mean([rmse for rmse, _ in by_seed]), rel=1e-5)
    assert float(lines["raft"]["rmse_std"]) == pytest.approx(np.std([rmse for rmse, _ in by_seed], ddof=1), rel=1e-4)
    assert float(lines["raft"]["pearson_mean"]) == pytest.approx(np.mean([r for _, r in by_seed]), rel=1e-4)
    assert float(lines["raft"]["learning_rate"]) == float(best)
    assert float(lines["raft"]["peak_memory_bytes"]) > 1e8
    assert lines["rail"]["runs"] == "1"
    assert f"| {float(lines['raft']['rmse_mean']):.3f} ± " in table.replace("**", "")
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert {
        "prediction_and_truth.png",
        "validation_rmse.png",
        "rmse_and_seconds.png",
        "rmse_and_tokens.png",
        "differences.png",
        "learning_curve.png",
        "distributions_raft.png",
        "entropy_change.png",
        "uncertainty_raft.png",
        "uncertainty_rail.png",
    } == pictures
    assert float(lines["raft"]["crps_mean"]) == pytest.approx(np.mean(scores), rel=1e-4)
    assert lines["mean of the training labels"]["crps_mean"] == "nan"
    curve = read_csv(folder / "runs" / "raft" / "lr0.001-seed0" / "curve.csv")
    assert [float(point["step"]) for point in curve] == [0, 2, 4]
    # Two steps of 16 rows are one pass over the 24, whose second batch holds the other 8.
    tokens = sum(len(tokenizer(prompt)["input_ids"]) for prompt in dataset["train"]["prompt"])
    assert [float(point["tokens"]) for point in curve] == [0, tokens, 2 * tokens]
    assert 0 == float(curve[0]["seconds"]) < float(curve[1]["seconds"]) < float(curve[2]["seconds"])
    assert not list(folder.glob("runs/*/*/checkpoints"))

    written = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/result.json")}
    (folder / "runs" / "rail" / "seed0" / "result.json").unlink()
    methods = "rail,raft,special_token:special_token=<nope>"
    # This time each run has a process of its own.
    options = settings(model_folder, folder, methods=methods, learning_rates="1e-2", one_process=False)
    table = compare_methods(options, dataset, GRID)
    again = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/result.json")}
    assert {path.parent.parent.name for path in written if again[path] != written[path]} == {"rail"}
    assert "special_token:special_token=<nope>, lr0.01-seed0 failed: ValueError: The tokenizer has no token" in table
    assert "| raft" in table


def test_the_folder_of_another_comparison_is_left_alone(model_folder, dataset, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"max_steps": 7}))
    with pytest.raises(ValueError, match=r"holds a comparison with another .*max_steps.*Choose another `output_dir`"):
        compare_methods(settings(model_folder, folder), dataset, GRID)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs its grid"),
        ({"dataset": None}, "A comparison needs data: set `task`"),
        ({"task": "stsb", "grid": GRID}, "takes one source of data"),
        ({"dataset": DatasetDict(train=rows(2, 0)), "grid": GRID}, "has no validation, test"),
        ({"grid": [5], "methods": "raft,raft:renormalize=true"}, "`renormalize=True` its probability is divided by"),
        ({"grid": GRID, "methods": "rail:grid=3", "settings_grid": "0..4"}, "The grid is given twice"),
    ],
)
def test_data_that_cannot_be_compared_on(options, message, dataset, tmp_path):
    (tmp_path / "model").mkdir()
    arguments = {"dataset": dataset, "grid": None, **options}
    given = {name: arguments[name] for name in ("task", "methods") if name in arguments}
    made = settings(tmp_path / "model", tmp_path / "out", grid=options.get("settings_grid"), **given)
    with pytest.raises(ValueError, match=message):
        compare_methods(made, arguments["dataset"], arguments["grid"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "raft,telepathy"}, "There is no method 'telepathy'"),
        ({"methods": "raft,raft"}, "names a method twice"),
        ({"methods": "raft:pooling=max"}, "does nothing with method 'raft'"),
        ({"methods": "raft:size=3"}, "has no option 'size'"),
        ({"methods": "raft:renormalize=perhaps"}, "is true or false"),
        ({"methods": "rail:num_samples=many"}, "The option 'num_samples' is a number, got 'many'"),
        ({"methods": "raft:init=new"}, "`init=new` does not exist"),
        ({"methods": "raft:init=random"}, "Use one that trains all weights: full, paper_gemma2, "),
        ({"methods": "raft:token_rows=random"}, "Use one that trains all weights: full, paper_gemma2, "),
        ({"methods": "raft:grid=1,9"}, "'9' in .* is not a method.*end each method with a semicolon"),
        ({"methods": "raft:grid=red;"}, "The grid 'red' cannot be read"),
        ({"methods": "raft:grid=5:renormalize=true"}, "The grid holds 5 alone"),
        ({"methods": "raft:number_tokens=best"}, "Use one of zero, first, average, random"),
        ({"methods": "pooled:number_tokens=first"}, "reads no number's tokens"),
        ({"methods": "raft:number_tokens=first:token_rows=random", "recipe": "full"}, "sets the rows .* twice"),
        ({"suite": "table99"}, "There is no suite 'table99'. Choose one of table3, table5"),
        ({"task": "stsb,mars"}, "There is no task 'mars'"),
        ({"task": "stsb,stsb_1k", "task_path": "here"}, "has 1 paths for 2 tasks, stsb, stsb_1k"),
        ({"task": "stsb", "train_file": "a.csv"}, "leave out `task` or `train_file`"),
        ({"train_file": "a.csv"}, "Your own rows need a grid"),
        ({"task": "stsb", "prompt_template": "{text}"}, "`prompt_template` is for your own rows"),
        ({"grid": "1..red"}, "cannot be read"),
        ({"keep": "first"}, "Use best or last"),
        ({"recipe": "paper_movielens"}, "The warm-up takes 10,000 of 4 steps"),
        ({"recipe": "full", "load_in_4bit": True}, "recipe 'full' trains all weights"),
        ({"max_test_samples": 0}, "`max_test_samples=0`"),
        ({"methods": "encoder_cls"}, "needs an encoder"),
        ({"methods": "served:model=stars"}, "needs a server. Set `base_url`"),
        ({"base_url": "http://localhost:8000/v1"}, "is asked by no method. Add `served:model=NAME`"),
        ({"methods": "served", "base_url": "http://localhost/v1"}, "names no model. Write 'served:model=NAME'"),
        ({"methods": "served:model=a:api=chat", "base_url": "http://localhost/v1"}, "`api=chat` predicts no numbers"),
        ({"methods": "served:model=a:tokenizer=b", "base_url": "http://localhost/v1"}, "is for 'api=completions'"),
        ({"methods": "sequence_classification:grid=1,9;"}, "has no option 'grid'. It has none"),
        ({"methods": "sequence_classification:init=random", "recipe": "full"}, "has no option 'init'. It has none"),
        ({"recipe": "secret"}, "There is no recipe 'secret'. Choose one of lora, full, paper_gemma2"),
        ({"seeds": 0}, "`seeds=0`"),
        ({"learning_rates": "fast"}, "must be numbers above 0"),
        ({"learning_rates": "0"}, "must be numbers above 0"),
        ({"decisions": "mean,guess"}, "no decision rule 'guess'"),
    ],
)
def test_settings_that_cannot_be_met(options, message):
    with pytest.raises(ValueError, match=message):
        settings("model", "out", **options)


def test_options_of_methods():
    methods = settings(
        "m", "o", methods="rail:num_samples=32,raft:decision=quantile:0.9:renormalize=true"
    ).compared_methods()
    assert methods[0].options == {"num_samples": 32}
    assert methods[1].options == {"decision": "quantile:0.9", "renormalize": True}
    assert methods[1].slug.startswith("raft-decision-quantile-0.9-renormalize-true-")


def test_methods_whose_names_differ_in_signs_alone_have_folders_of_their_own():
    labels = ["special_token:special_token=<s>", "special_token:special_token=</s>", "special_token:special_token=[s]"]
    methods = settings("m", "o", methods=",".join(labels)).compared_methods()
    assert len({method.slug for method in methods}) == 3


class TestResults:
    """What the report makes of runs, from folders written by hand."""

    def test_the_best_rate_is_that_of_the_lowest_validation_at_seed_0(self, tmp_path):
        runs = [
            made_up_run(tmp_path / "a", rate=1e-3, validation=2.0),
            made_up_run(tmp_path / "b", rate=1e-2, validation=1.0),
            made_up_run(tmp_path / "c", rate=1e-1, validation=float("nan")),
            made_up_run(tmp_path / "d", rate=1e-3, validation=0.1, seed=1),
        ]
        assert best_rate(runs) == 1e-2
        assert chosen_runs(runs, seeds=3) == [runs[1]]
        assert best_rate([runs[2]]) is None
        assert runs[2].diverged
        assert ended_early(runs[0]) and steps_to_convergence(runs[0]) == 20  # 1.0, its last, is its best
        runs[0].curve["rmse"][2] = 1.02
        assert not ended_early(runs[0]) and steps_to_convergence(runs[0]) == 10  # 1.01, now the best
        runs[0].curve["rmse"][0] = 1.03  # within 2 % of it, which is 1.0302
        assert steps_to_convergence(runs[0]) == 0

    @pytest.mark.parametrize("renormalize", [False, True])
    def test_other_decisions_keep_the_methods_renormalisation(self, renormalize, tmp_path):
        label = f"raft:decision=mode:renormalize={str(renormalize).lower()}"
        folder = tmp_path / "runs" / "raft" / "a"
        begin(tmp_path)
        options = settings("m", tmp_path, methods=label, seeds=1)
        write_report(tmp_path, options, {label: [made_up_run(folder, method=label)]}, {}, train_labels=[1.0])
        lines = {line["method"]: line for line in read_csv(tmp_path / "table.csv")}
        # Means 0.3 + 0.2 = 0.5 and 0.2 + 1.4 = 1.6; divided by the masses 0.6 and 0.9, 0.8333 and 1.7778.
        means = [0.5 / 0.6, 1.6 / 0.9] if renormalize else [0.5, 1.6]
        expected = np.sqrt(np.mean(np.subtract(means, [1.0, 2.0]) ** 2))
        assert float(lines[f"{label}, mean"]["rmse_mean"]) == pytest.approx(expected, rel=1e-5)

    def test_a_method_that_diverged_is_named(self, tmp_path):
        begin(tmp_path)
        results = {
            "raft": [made_up_run(tmp_path / "runs" / "raft" / "lr1-seed0", rate=1.0, validation=float("nan"))],
            "mbr": [made_up_run(tmp_path / "runs" / "mbr" / "lr1-seed0", method="mbr", rate=1.0)],
        }
        text = write_report(
            tmp_path, settings("m", tmp_path, methods="raft,mbr"), results, {}, train_labels=[0.0, 2.0]
        )
        assert "raft, lr1-seed0 failed: it diverged" in text
        # The best of the curve is its last, at step 20.
        assert "| > 20" in text and "had not converged" in text
        # The mean of the training labels is 1, and the labels are 1 and 2: an RMSE of sqrt(1 / 2).
        assert "| mean of the training labels | 0.707" in text
        assert text.count("**") == 2 * 6  # the best row, by each metric
        with pytest.raises(ValueError, match="No run of the comparison gave a result"):
            write_report(
                tmp_path, settings("m", tmp_path, methods="raft"), {"raft": results["raft"]}, {}, train_labels=[0.0]
            )


def test_other_rows_do_not_go_on_with_a_comparison(model_folder, dataset, tmp_path):
    folder = tmp_path / "out"
    options = settings(model_folder, folder, methods="rail", seeds=1)
    compare_methods(options, dataset, GRID)
    other = DatasetDict({**dataset, "test": dataset["test"].map(lambda row: {"label": 4 - row["label"]})})
    with pytest.raises(ValueError, match="holds a comparison with another digest"):
        compare_methods(options, other, GRID)
    moved = tmp_path / "moved"
    folder.rename(moved)
    # A folder from before a setting was there goes on with its default.
    told = json.loads((moved / "comparison.json").read_text())
    older = {name: value for name, value in told.items() if name not in ("budget", "drop_leaks")}
    (moved / "comparison.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match="holds a comparison with another drop_leaks: False, not True"):
        compare_methods(settings(model_folder, moved, methods="rail", seeds=1, drop_leaks=True), dataset, GRID)
    assert "| rail" in compare_methods(settings(model_folder, moved, methods="rail", seeds=1), dataset, GRID)


def test_labels_that_are_text(dataset, tmp_path):
    test = Dataset.from_list([{"prompt": "a", "label": "good"}])
    with pytest.raises(ValueError, match=r"The test split has labels that are no finite numbers, in the rows \[0\]"):
        compare_methods(settings(tmp_path, tmp_path / "out"), DatasetDict({**dataset, "test": test}), GRID)


class TestOwnRows:
    """Files of rows instead of a dataset."""

    def write(self, path, count, offset=0):
        lines = [f"item {index + offset},{(index * 7) % 9 / 2}" for index in range(count)]
        path.write_text("text,stars\n" + "\n".join(lines) + "\n")
        return str(path)

    def command(self, model, folder, *more):
        return [
            *("compare", "--model", model, "--output_dir", str(folder / "out"), "--grid", "0..4", "--label_column"),
            *("stars", "--prompt_template", "Rate the {text} from 0 to 4:", "--methods", "rail", "--seeds", "1"),
            *("--one_process", "true", *more),
        ]

    def test_a_comparison_on_files(self, model_folder, tmp_path, capsys):
        files = ("--train_file", self.write(tmp_path / "train.csv", 20))
        tests = ("--test_file", self.write(tmp_path / "test.csv", 5, 100))
        training = ("--max_steps", "2", "--eval_steps", "2", "--learning_rates", "1e-2", "--save_models", "true")
        methods = ("--methods", "rail,sequence_classification", *training)
        assert main(self.command(model_folder, tmp_path, *files, *tests, *methods)) == 0
        said = capsys.readouterr().out
        assert f"Held out of {files[1]} by seed 0: 3 rows for validation; 17 are left to train on." in said
        assert "| mean of the training labels |" in said and "(17 train, 3 validation, 5 test)" in said
        data = load_from_disk(str(tmp_path / "out" / "data"))
        assert data["test"][1] == {"prompt": "Rate the item 101 from 0 to 4:", "label": 3.5}
        assert "| sequence_classification |" in said.replace("*", "")
        predictions = read_csv(tmp_path / "out" / "predictions" / "sequence_classification" / "seed0.csv")
        assert [float(row["label"]) for row in predictions] == data["test"]["label"]
        (saved,) = (tmp_path / "out" / "runs" / "sequence_classification").glob("*/model/adapter_model.safetensors")
        assert "base_model.model.score.weight" in load_file(saved)
        prompts = [{row["prompt"] for row in data[split]} for split in ("train", "validation")]
        assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 20

    def test_rows_in_common_with_the_test_are_named_and_can_be_dropped(self, model_folder, tmp_path, capsys, caplog):
        files = ("--train_file", self.write(tmp_path / "train.csv", 20), "--eval_file")
        files += (self.write(tmp_path / "eval.csv", 3, 200), "--test_file", self.write(tmp_path / "test.csv", 5, 17))
        assert main(self.command(model_folder, tmp_path, *files)) == 0
        said = capsys.readouterr().out
        common = "3 of the 20 train rows have the prompt of a test row (3 of 5), such as row 17 that of test row 0"
        assert common in caplog.text and "Remove them with `--drop_leaks true`" in caplog.text
        assert f"Rows in common: {common}" in said and "`--drop_leaks true` removes them" in said
        dropped = self.command(model_folder, tmp_path / "dropped", *files, "--drop_leaks", "true")
        assert main(dropped) == 0
        assert "(17 train, 3 validation, 5 test)" in capsys.readouterr().out
        (leak,) = json.loads((tmp_path / "dropped" / "out" / "table.json").read_text())["leaks"]
        assert (leak["rows"], leak["of_rows"], leak["dropped"]) == (3, 20, True)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--train_file", "none.csv"], "There is no file 'none.csv'"),
            (["--train_file", "{}", "--eval_file", "none.csv"], "There is no file 'none.csv'"),
            (["--train_file", "{}", "--label_column", "score"], "no label in 'score'"),
            (["--train_file", "{}", "--prompt_template", "{{body}}"], "the column 'body'"),
            (["--train_file", "{}", "--model", "/no/such/model"], "There is no folder '/no/such/model'"),
            (["--train_file", "{}", "--keep", "all"], "`--keep all` does not exist"),
        ],
    )
    def test_mistakes_are_found_before_any_model_is_loaded(self, options, message, model_folder, tmp_path, capsys):
        path = self.write(tmp_path / "train.csv", 20)
        words = [word.format(path) for word in options]
        assert main(self.command(model_folder, tmp_path, *words)) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_too_few_rows_to_hold_any_out(self, model_folder, tmp_path, capsys):
        path = self.write(tmp_path / "train.csv", 2)
        assert main(self.command(model_folder, tmp_path, "--train_file", path)) == 1
        assert "has 2 rows, too few to hold some out for validation and test" in capsys.readouterr().err


def test_several_tasks_have_a_folder_each_and_one_that_fails_leaves_the_others(
    model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(TASKS, "synthetic_again", TASKS["synthetic"])
    folder = tmp_path / "out"
    options = settings(
        model_folder,
        folder,
        task="synthetic,synthetic_again",
        methods="rail",
        seeds=1,
        decisions="mean",
        max_train_samples=8,
        max_test_samples=4,
    )
    text = compare_methods(options)
    assert text == (folder / "table.md").read_text()
    assert text.index("## synthetic\n") < text.index("## synthetic_again\n")
    assert (folder / "synthetic_again" / "table.csv").is_file()
    assert text.startswith("## RMSE on all tasks\n") and "| synthetic_again" in text.splitlines()[2]
    said = capsys.readouterr()
    assert "2 of 2 runs are done." in said.out

    report = comparison.write_report

    def failing(at, *arguments, **options):
        return 1 / 0 if at.name == "synthetic" else report(at, *arguments, **options)

    monkeypatch.setattr(comparison, "write_report", failing)
    text = compare_methods(options)
    assert "- synthetic failed: ZeroDivisionError: division by zero" in text and "## synthetic_again\n" in text


class TestCommandLine:
    def test_help_shows_an_example(self, capsys):
        with pytest.raises(SystemExit) as end:
            main(["compare", "--help"])
        assert end.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --task stsb_1k" in text
        assert "--learning_rates" in text
        assert "(default: label)" in text and "default: None" not in text

    @pytest.mark.parametrize("arguments", [[], ["dance"], ["-x"]])
    def test_unknown_commands(self, arguments, capsys):
        assert main(arguments) == 2
        assert "raft-peft compare    [options]" in capsys.readouterr().err

    def test_errors_are_one_line(self, capsys, tmp_path):
        arguments = ["compare", "--model", "m", "--output_dir", str(tmp_path), "--task", "stsb9"]
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert "raft-peft compare: There is no task 'stsb9'. Choose one of: stsb, " in error
        assert "Traceback" not in error


def test_a_comparison_says_before_it_starts_that_it_cannot_draw(monkeypatch, tmp_path):
    monkeypatch.setattr("raft_peft.compare.comparison.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'raft-peft\[plots\]'"):
        compare_methods(settings("m", tmp_path / "out", task="synthetic"))
    assert not (tmp_path / "out").exists()
