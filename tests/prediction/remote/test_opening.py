"""Predictors of numbers by the name of an API: files through `/completions`; `/v1/predict` is in tests/serving."""

import json

import pytest

from raft_peft.prediction.evaluation import evaluate_rows
from raft_peft.prediction.files import predict_file
from raft_peft.prediction.remote.opening import open_numbers

GRID = [0, 1, 2, 3, 4]
ROWS = [{"prompt": f"the score of item {number} is", "label": number % 5} for number in range(7)]


def test_files_are_predicted_and_continued_through_completions(serve, local, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    _, asked = serve()
    remote = open_numbers(asked.base_url, "stars", "completions", tokenizer=str(tmp_path / "tokenizer"), grid=GRID)
    source, target = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert predict_file(remote, source, target, limit=3, distribution=True) == 3
    assert predict_file(remote, source, target, distribution=True) == 4
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["prediction"] for row in found] == pytest.approx(local.predict(ROWS).tolist(), abs=1e-4)
    assert evaluate_rows(remote, ROWS).metrics == pytest.approx(evaluate_rows(local, ROWS).metrics, abs=1e-3)
    other = open_numbers(asked.base_url, "stars", "completions", tokenizer=str(tmp_path / "tokenizer"), grid=[0, 1, 2])
    with pytest.raises(ValueError, match="was written with another grid"):
        predict_file(other, source, target, distribution=True)
    with pytest.raises(ValueError, match="Behind /v1/completions a model has no calibration"):
        predict_file(remote, source, tmp_path / "intervals.jsonl", interval=0.9)


def test_mistakes_are_told(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"`api=chat` predicts no numbers. Use predict or completions"):
        open_numbers("http://localhost/v1", "stars", "chat")
    with pytest.raises(ValueError, match=r"was not saved with a grid. Set `grid`"):
        open_numbers("http://localhost/v1", "stars", "completions", tokenizer=str(tmp_path / "tokenizer"))
