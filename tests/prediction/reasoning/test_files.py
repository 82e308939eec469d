"""Predictions with reasons from file to file, and reasonings written to train on."""

import json

import numpy as np
import pytest
from conftest import make_tiny_llama
from datasets import Dataset
from support.reasonings import SCORE_PREFIX
from support.training import GRID, config
from transformers import pipeline

from raft_peft import RegressionAwareTrainer, RegressionPredictor, TextRegressionPipeline, predict_file, reason_file
from raft_peft.cli.command import main
from raft_peft.data.row_sources import read_rows
from raft_peft.forward.writing import Written
from raft_peft.prediction.evaluation import evaluate_rows

ROWS = [{"prompt": f"Rate item {index}, and say why:", "label": index % 5, "reasoning": "Old."} for index in range(9)]


@pytest.fixture
def predictor(tokenizer):
    return RegressionPredictor(make_tiny_llama(tokenizer).eval(), tokenizer, GRID, score_prefix=SCORE_PREFIX)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def scripted(monkeypatch):
    """What the model writes for every prompt: one text after the other."""
    texts = []

    def write(model, tokenizer, prompts, *, count, **_):
        return [texts[:count] for _ in prompts]

    monkeypatch.setattr("raft_peft.prediction.reasoning.writer.write_texts", write)
    return texts


def test_predictions_with_reasons_go_on_as_they_began(predictor, source, tmp_path, caplog):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    options = {
        "reasons": True,
        "num_reasonings": 2,
        "max_reasoning_tokens": 3,
        "seed": 5,
        "chunk_size": 4,
    }
    assert predict_file(predictor, source, whole, **options) == 9
    assert "18 of the 18 reasonings did not end within `max_reasoning_tokens=3`" in caplog.text
    rows = list(read_rows(whole))
    assert all(len(row["reasonings"]) == len(row["numbers"]) == row["unfinished"] == 2 for row in rows)
    for row in rows:
        assert row["reasoning"] == "Old." and row["within"] > 0
        assert row["between"] == pytest.approx(np.std(row["numbers"]), abs=1e-5)
        assert row["prediction"] == pytest.approx(np.mean(row["numbers"]), abs=1e-5)
    assert len({row["reasonings"][0] for row in rows}) > 1
    cut.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:4]))
    (tmp_path / "cut.jsonl.made_by.json").write_bytes((tmp_path / "whole.jsonl.made_by.json").read_bytes())
    with pytest.raises(ValueError, match="written with another temperature"):
        predict_file(predictor, source, cut, **{**options, "temperature": 0.5})
    assert predict_file(predictor, source, cut, **options) == 5
    assert cut.read_bytes() == whole.read_bytes()
    table = tmp_path / "out.csv"
    predict_file(predictor, source, table, **options)
    assert json.loads(next(read_rows(table))["reasonings"]) == rows[0]["reasonings"]


def test_reasons_of_a_model_that_knows_none(predictor, source, tmp_path):
    plain = RegressionPredictor(predictor.model, predictor.tokenizer, GRID)
    with pytest.raises(ValueError, match="Pass `score_prefix`"):
        predict_file(plain, source, tmp_path / "out.jsonl", reasons=True)
    with pytest.raises(ValueError, match="row 0: The row has a `reasoning`, and no words"):
        plain.predict(ROWS)


def test_evaluation_and_calibration_by_reasonings(predictor, scripted):
    scripted += [Written("It is hot.", True), Written("So what?", True)]
    given = [{**row, "reasoning": ["It is hot.", "So what?"]} for row in ROWS]
    expected = evaluate_rows(predictor, given)
    found = evaluate_rows(predictor, ROWS, num_reasonings=2)
    np.testing.assert_allclose(found.predictions, expected.predictions, atol=1e-5)
    assert found.metrics["rmse"] == pytest.approx(expected.metrics["rmse"], abs=1e-5)
    labels = [row["label"] for row in ROWS]
    predictor.calibrate(ROWS, labels, num_reasonings=2)
    low = predictor.predict(ROWS, interval=0.5, num_reasonings=2, seed=3).low
    assert len(low) == 9
    for other in ({}, {"num_reasonings": 1}, {"num_reasonings": 2, "temperature": 0.5}):
        with pytest.raises(ValueError, match="was made with another"):
            predictor.predict(ROWS, interval=0.5, **other)
    assert "coverage" in evaluate_rows(predictor, ROWS, interval=0.5, num_reasonings=2).metrics


def test_what_is_kept_of_what_the_model_wrote(predictor, source, tmp_path, scripted, caplog):
    texts = ["It is hot.", "", "Nobody likes it. The score is 3.", "It goes on and", "So what?"]
    scripted += [Written(text, text != texts[3]) for text in texts]
    target = tmp_path / "own.jsonl"
    assert reason_file(predictor, source, target, num_reasonings=5, limit=4) == 4
    assert "12 of the 20 reasonings are left out" in caplog.text
    assert "4 hold their score, or the end of the turn, already" in caplog.text and "4 are empty" in caplog.text
    # The same call goes on with the others.
    assert reason_file(predictor, source, target, num_reasonings=5) == 5
    rows = list(read_rows(target))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    for row, given in zip(rows, ROWS, strict=True):
        assert row["reasoning"] == ["It is hot.", "So what?"]
        behind = predictor.predict([{**given, "reasoning": one} for one in row["reasoning"]])
        assert row["numbers"] == pytest.approx(behind.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="written with another keep_within"):
        reason_file(predictor, source, target, num_reasonings=5, keep_within=0.5)


def test_reasonings_near_the_label_are_rows_to_train_on(predictor, source, tmp_path, scripted, caplog):
    scripted += [Written("It is hot.", True), Written("So what?", True), Written("Open", False)]
    target = tmp_path / "own.jsonl"
    reason_file(predictor, source, target, num_reasonings=3, keep_within=0.9, keep_unfinished=True)
    rows = list(read_rows(target))
    numbers = predictor.predict(
        [{**row, "reasoning": text} for row in ROWS for text in ("It is hot.", "So what?", "Open")]
    )
    near = np.abs(numbers.reshape(9, 3) - np.array([[row["label"]] for row in ROWS])) <= 0.9
    assert [len(row["reasoning"] or []) for row in rows] == near.sum(1).tolist()
    lost = int((~near.any(1)).sum())
    assert 0 < lost < 9 and f"{lost} of the 9 rows have no reasoning left" in caplog.text
    trainer = RegressionAwareTrainer(
        predictor.model,
        config(tmp_path / "run", max_steps=1, score_prefix=SCORE_PREFIX),
        grid=GRID,
        processing_class=predictor.tokenizer,
        train_dataset=Dataset.from_json(str(target)),
    )
    assert np.isfinite(trainer.train().training_loss)
    trainer.save_model(str(tmp_path / "saved"))
    saved = RegressionPredictor.from_pretrained(tmp_path / "saved")
    prompts = [row["prompt"] for row in ROWS]
    expected = pytest.approx(saved.predict(prompts, num_reasonings=2).tolist(), abs=1e-5)
    scorer = pipeline("text-regression", model=str(tmp_path / "saved"), num_reasonings=2)
    assert isinstance(scorer, TextRegressionPipeline)
    assert [answer["prediction"] for answer in scorer(prompts)] == expected
    assert [scorer(prompt)["prediction"] for prompt in prompts] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "own.csv"}, r"reads from \.jsonl"),
        ({"num_reasonings": 0}, "num_reasonings=0"),
        ({"keep_within": -1}, "keep_within=-1"),
        ({"temperature": 0.0}, "all 4 reasonings of a prompt are the same"),
        ({"keep_within": 1, "label_column": "stars"}, "row 0"),
    ],
)
def test_what_cannot_be_written(predictor, source, tmp_path, options, message):
    target = tmp_path / options.pop("target", "own.jsonl")
    with pytest.raises(ValueError, match=message):
        reason_file(predictor, source, target, **options)
    assert not target.exists()


def test_the_commands(predictor, source, tmp_path, capsys, caplog):
    folder = tmp_path / "model"
    predictor.model.save_pretrained(folder)
    predictor.tokenizer.save_pretrained(folder)
    options = ["--model", str(folder), "--grid", "0..4"]
    written = ["--num-reasonings", "2", "--max-reasoning-tokens", "3"]
    prefix = ["--score-prefix", SCORE_PREFIX]
    target = tmp_path / "out.jsonl"
    assert main(["predict", str(source), str(target), *options, *prefix, *written, "--reasons"]) == 0
    assert "18 of the 18 reasonings did not end within `--max-reasoning-tokens 3`" in caplog.text
    expected = predictor.predict_with_reasons(ROWS, 2, max_reasoning_tokens=3, seed=0)
    assert [row["prediction"] for row in read_rows(target)] == pytest.approx(expected.predictions.tolist(), abs=1e-4)
    assert main(["predict", str(source), *options, "--temperature", "0.5"]) == 1
    assert "Set `--num-reasonings`" in capsys.readouterr().err
    assert main(["reason", str(source), str(tmp_path / "own.jsonl"), *options]) == 1
    assert "was not trained on reasonings" in capsys.readouterr().err
    assert main(["predict", str(source), *options, "--score-prefix", r"\n[RESULT] "]) == 1
    assert "holds a backslash and an n" in capsys.readouterr().err
    assert main(["evaluate", str(source), *options, *prefix, "--output", str(tmp_path / "metrics.json")]) == 0
    given = evaluate_rows(predictor, ROWS).metrics["rmse"]
    assert json.loads((tmp_path / "metrics.json").read_text())["rmse"] == pytest.approx(given, abs=1e-5)
    assert main(["calibrate", str(source), *options, *prefix, *written]) == 0
    assert main(["predict", str(source), *options, *prefix, "--interval", "0.5"]) == 1
    assert "another num_reasonings, temperature, max_reasoning_tokens" in capsys.readouterr().err
    own = tmp_path / "own.jsonl"
    assert main(["reason", str(source), str(own), *options, *prefix, *written, "--keep-unfinished"]) == 0
    assert "Reasonings for 9 rows" in capsys.readouterr().out
    assert {len(row["reasoning"] or []) for row in read_rows(own)} <= {0, 1, 2}
    assert main(["reason", str(source), str(own), *options, *prefix, *written, "--keep-unfinished"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
