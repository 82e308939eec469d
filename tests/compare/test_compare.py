"""`compare` on a tiny model: real runs, in processes of their own."""

import csv
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scipy import stats

from raft_peft.cli import main
from raft_peft.compare import CompareSettings, compare_methods

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
    }
    return CompareSettings(model=model, output_dir=str(folder), **{**defaults, **options})


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_comparison_from_beginning_to_end(model_folder, dataset, tmp_path):
    """Two methods, two learning rates, two seeds; then a run is lost, a method that fails is added, and it goes on."""
    folder = tmp_path / "out"
    table = compare_methods(settings(model_folder, folder), dataset, GRID)
    runs = {str(path.parent.relative_to(folder / "runs")) for path in folder.glob("runs/*/*/result.json")}
    tried = [
        json.loads((folder / "runs" / "raft" / f"lr{rate}-seed0" / "result.json").read_text())["validation_rmse"]
        for rate in ("0.001", "0.01")
    ]
    best = ("0.001", "0.01")[int(np.argmin(tried))]
    assert runs == {"rail/seed0", "raft/lr0.001-seed0", "raft/lr0.01-seed0", f"raft/lr{best}-seed1"}

    # The table says what the predictions give.
    lines = {line["method"]: line for line in read_csv(folder / "table.csv")}
    assert set(lines) == {"rail", "rail, mode", "raft", "raft, mode"}
    by_seed = []
    for seed in range(2):
        predictions = read_csv(folder / "predictions" / "raft" / f"seed{seed}.csv")
        predicted, label = (np.array([float(row[name]) for row in predictions]) for name in ("prediction", "label"))
        np.testing.assert_array_equal(label, dataset["test"]["label"])
        np.testing.assert_allclose(
            predicted, [sum(y * float(row[f"p({y})"]) for y in GRID) for row in predictions], atol=1e-5
        )
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
        "distributions_raft.png",
        "entropy_change.png",
    } == pictures
    curve = read_csv(folder / "runs" / "raft" / "lr0.001-seed0" / "curve.csv")
    assert [float(point["step"]) for point in curve] == [0, 2, 4]
    assert not list(folder.glob("runs/*/*/checkpoints"))

    written = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/result.json")}
    (folder / "runs" / "rail" / "seed0" / "result.json").unlink()
    methods = "rail,raft,special_token:special_token=<nope>"
    table = compare_methods(settings(model_folder, folder, methods=methods, learning_rates="1e-2"), dataset, GRID)
    again = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/result.json")}
    assert {path.parent.parent.name for path in written if again[path] != written[path]} == {"rail"}
    assert "special_token:special_token=<nope>, lr0.01-seed0 failed: ValueError: The tokenizer has no token" in table
    assert "| raft" in table


def test_the_folder_of_another_comparison_is_left_alone(model_folder, dataset, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"max_steps": 7}))
    with pytest.raises(ValueError, match=r"holds a comparison with another .*max_steps.*Choose another output_dir"):
        compare_methods(settings(model_folder, folder), dataset, GRID)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs its grid"),
        ({"dataset": None}, "needs data once"),
        ({"task": "stsb", "grid": GRID}, "needs data once"),
        ({"dataset": DatasetDict(train=rows(2, 0)), "grid": GRID}, "has no validation, test"),
    ],
)
def test_data_that_cannot_be_compared_on(options, message, dataset, tmp_path):
    arguments = {"dataset": dataset, "grid": None, **options}
    task = arguments.pop("task", None)
    with pytest.raises(ValueError, match=message):
        compare_methods(settings("model", tmp_path / "out", task=task), arguments["dataset"], arguments["grid"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "raft,telepathy"}, "There is no method 'telepathy'"),
        ({"methods": "raft,raft"}, "names a method twice"),
        ({"methods": "raft:pooling=max"}, "does nothing with method 'raft'"),
        ({"methods": "raft:size=3"}, "has no option 'size'"),
        ({"methods": "raft:renormalize=perhaps"}, "is true or false"),
        ({"methods": "rail:num_samples=many"}, "is a whole number"),
        ({"methods": "raft:init=new"}, "`init=new` does not exist"),
        ({"methods": "raft:init=random"}, "Use recipe full or paper"),
        ({"methods": "encoder_cls"}, "needs an encoder"),
        ({"recipe": "secret"}, "There is no recipe 'secret'. Choose of lora, full, paper"),
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
    assert methods[1].slug == "raft-decision-quantile-0.9-renormalize-true"


class TestCommandLine:
    def test_help_shows_an_example(self, capsys):
        with pytest.raises(SystemExit) as end:
            main(["compare", "--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert "raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --task stsb_1k" in text
        assert "--learning_rates" in text

    @pytest.mark.parametrize("arguments", [[], ["train"], ["-x"]])
    def test_unknown_commands(self, arguments, capsys):
        assert main(arguments) == 2
        assert "usage: raft-peft compare" in capsys.readouterr().err

    def test_errors_are_one_line(self, capsys, tmp_path):
        arguments = ["compare", "--model", "m", "--output_dir", str(tmp_path), "--task", "stsb9"]
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert "raft-peft compare: There is no task 'stsb9'. Choose one of: stsb, " in error
        assert "Traceback" not in error
