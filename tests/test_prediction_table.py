"""What a run sends to the tools that follow it."""

import numpy as np
import pytest
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raft_peft.prediction_table import prediction_rows
from tests.training import lora, make

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
    rows = prediction_rows(["a", "b" * 600], np.array([1.0, 2.0, 3.0]), read, [0, 0.5, 10])
    assert rows[0] == {
        "prompt": "a",
        "label": 1.0,
        "prediction": 1.5,
        "distribution": "0.5: 0.600, 10: 0.200, 0: 0.100",
    }
    assert rows[1]["prompt"] == "..." + "b" * 500
    del read["log_probs"]
    assert "distribution" not in prediction_rows(["a"], np.array([1.0]), read, [0, 1])[0]
