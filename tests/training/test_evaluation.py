"""What is made of an evaluation: metrics, a record, and what is sent to the tools that follow a run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.training import lora, make
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from raft_peft import NumberGrid
from raft_peft.training.evaluation import as_numbers, evaluation_of, metrics_of, prediction_rows

ROWS = [{"prompt": f"Rate item {index} | {'x' * 600}\nthe score is", "label": float(index % 5)} for index in range(6)]


def test_tensorboard_gets_metrics_and_a_table_of_predictions(tiny_llama, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    options = {
        "max_steps": 2,
        "report_to": "tensorboard",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "logging_steps": 1,
    }
    options |= {"log_predictions": 2}
    trainer = make(
        tiny_llama,
        tokenizer,
        tmp_path,
        ROWS,
        options=options,
        peft_config=lora(),
        eval_dataset=Dataset.from_list(ROWS),
    )
    trainer.train()
    logged = EventAccumulator(str(tmp_path / "logs")).Reload()
    scalars = set(logged.Tags()["scalars"])
    assert {f"eval/{name}" for name in ("rmse", "mae", "pearson", "spearman", "grid_mass", "entropy")} <= scalars
    assert {"train/loss", "train/grid_mass", "train/entropy"} <= scalars
    tables = logged.Tensors("eval_predictions/text_summary")
    assert [event.step for event in tables] == [1, 2]
    lines = tables[-1].tensor_proto.string_val[0].decode().splitlines()
    assert len(lines) == 2 + 2
    assert lines[0] == "| prompt | label | prediction | distribution |"
    prediction = trainer.evaluations["eval"].predictions[1]
    assert f"| 1 | {prediction:.4g} |" in lines[3]
    assert "xxx<br>the score is" in lines[3]
    assert len(lines[3]) < 700


def evaluated(model, tokenizer, folder, report_to, **options):
    """A trainer that has evaluated after its one step, with a table of two rows sent to where it reports."""
    options |= {"report_to": report_to, "log_predictions": 2, "run_name": "a run"}
    trainer = make(
        model,
        tokenizer,
        folder,
        ROWS,
        options={"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, **options},
        peft_config=lora(),
        eval_dataset=Dataset.from_list(ROWS),
    )
    trainer.train()
    return trainer


def test_wandb_gets_the_table(tiny_llama, tokenizer, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trainer = evaluated(tiny_llama, tokenizer, tmp_path, "wandb")
    wandb.finish()
    (table,) = (json.loads(path.read_text()) for path in tmp_path.rglob("eval_predictions_*.table.json"))
    assert table["columns"] == ["prompt", "label", "prediction", "distribution"]
    predictions = trainer.evaluations["eval"].predictions[:2]
    assert [row[1:3] for row in table["data"]] == [[0.0, predictions[0]], [1.0, predictions[1]]]


def test_trackio_gets_the_table(tiny_llama, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    trainer = evaluated(tiny_llama, tokenizer, tmp_path, "trackio", project="stars")
    logs = storage.get_logs("stars", "a run")
    (table,) = (entry["eval_predictions"]["_value"] for entry in logs if "eval_predictions" in entry)
    assert [row["prediction"] for row in table] == list(trainer.evaluations["eval"].predictions[:2])
    assert any(entry.get("eval/grid_mass") for entry in logs)


def test_train_entropy_is_that_of_the_batch(tiny_llama, tokenizer, tmp_path):
    options = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 6}
    trainer = make(tiny_llama, tokenizer, tmp_path, ROWS, options=options)
    trainer.train()
    expected = trainer.predict(Dataset.from_list(ROWS)).distribution
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["entropy"] == pytest.approx(expected.entropy.mean().item(), abs=1e-4)
    assert logs[0]["grid_mass"] == pytest.approx(expected.mass.mean().item(), abs=1e-4)


def test_rows():
    read = {"predictions": np.array([1.5, 2.0], np.float32), "log_probs": np.log(np.array([[0.1, 0.6, 0.2]] * 2))}
    rows = prediction_rows([{"prompt": "a"}, {"prompt": "b" * 600}], np.array([1.0, 2.0, 3.0]), read, [0, 0.5, 10])
    assert rows[0] == {
        "prompt": "a",
        "label": 1.0,
        "prediction": 1.5,
        "distribution": "0.5: 0.600, 10: 0.200, 0: 0.100",
    }
    assert rows[1]["prompt"] == "..." + "b" * 500
    del read["log_probs"]
    assert "distribution" not in prediction_rows([{"prompt": "a"}], np.array([1.0]), read, [0, 1])[0]


# Two rows, predicted as 1 and 4 with labels 1 and 2; a grid of two numbers with masses of 0.5 and 1.
READ = {
    "predictions": np.array([1.0, 4.0], np.float32),
    "log_probs": np.log(np.array([[0.25, 0.25], [0.5, 0.5]])),
    "losses": np.array([0.0, 4.0], np.float32),
}
LABELS = np.array([1.0, 2.0], np.float32)


def readout(*, sums_to_one):
    head = SimpleNamespace(sums_to_one=sums_to_one)
    return SimpleNamespace(head=head, grid=NumberGrid([1, 2, 4]), values=torch.tensor([1.0, 4.0]))


def test_metrics_by_hand():
    metrics = metrics_of(EvalPrediction(READ, LABELS), readout(sums_to_one=False))
    # squared errors 0 and 4, squared deviations of the labels from their mean 1/4 each
    expected = {"loss": 2, "rmse": 2**0.5, "mae": 1, "pearson": 1, "spearman": 1, "rmse_of_mean": 0.5, "r2": -7}
    # One pair, in order; of three ranks 0, 2 against 0, 1 the kappa is 1 - (1 / 2) / ((1 + 4 + 1 + 0) / 4).
    expected |= {"kendall": 1, "qwk": 2 / 3}
    assert metrics == pytest.approx({**expected, "grid_mass": 0.75, "entropy": np.log(2)})
    assert metrics_of(EvalPrediction(READ, LABELS), readout(sums_to_one=True)) == pytest.approx(expected)


def test_metrics_of_the_distribution_where_the_labels_are_shares_of_its_numbers():
    read = {**READ, "label_shares": np.array([[1.0, 0.0], [0.5, 0.5]]), "rated": np.array([0.0, 1.0])}
    read["beyond"] = np.array([0.0, 2.0])
    metrics = metrics_of(EvalPrediction(read, LABELS), readout(sums_to_one=True))
    # Half on 1 and half on 4, a length of 3: (1 - 1/2)^2 of it, and against a half of the ratings (1/4 + 1/4) / 2.
    # The second label is beyond the grid by 2.
    assert metrics["crps"] == pytest.approx((3 / 4 + 3 / 4 + 2) / 2)
    assert metrics["rater_distance"] == 0


def test_metrics_of_parsed_numbers_stand_beside_those_of_the_expectation():
    read = {**READ, "parsed": np.array([1.0, 0.5]), "rail": np.array([1.0, 2.0])}
    metrics = metrics_of(EvalPrediction(read, LABELS), readout(sums_to_one=True))
    assert metrics["parsed"] == 0.75
    assert (metrics["rail_rmse"], metrics["rail_mae"]) == (0, 0)
    assert metrics["mae"] == 1


def test_a_users_metrics_are_of_numbers():
    numbers = as_numbers(EvalPrediction(READ, LABELS), with_losses=True)
    assert numbers.predictions.tolist() == [1, 4]
    assert numbers.losses.tolist() == [0, 4]
    assert as_numbers(EvalPrediction(READ, LABELS), with_losses=False).losses is None


def test_what_is_remembered_of_an_evaluation():
    metrics = {"dev_rmse": 1.0, "dev_loss": 2.0, "dev_of_mine": 3.0}
    evaluation = evaluation_of(EvalLoopOutput(READ, LABELS, metrics, 2), "dev_", 5, readout(sums_to_one=False))
    assert evaluation.metrics == {"rmse": 1.0}
    assert evaluation.step == 5
    assert evaluation.predictions.tolist() == [1, 4]
