"""Offline prediction with `datasets.map`, on a tiny model."""

import json

import pyarrow.parquet
import pytest
from support.training import lora, make

from examples.predict_with_datasets import main
from raft_peft import RegressionPredictor


@pytest.fixture
def judge(tiny_llama, tokenizer, rows, tmp_path):
    """A folder as training leaves it."""
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "judge", rows, peft_config=lora())
    trainer.save_model()
    return tmp_path / "judge"


def test_adds_the_predictions_and_keeps_the_rows(judge, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}], "id": i} for i, row in enumerate(rows)]
    for name, lines in (("texts", rows), ("chats", chats)):
        source, target = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.parquet"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        main(str(judge), str(source), str(target), batch_size=3)
        written = pyarrow.parquet.read_table(target).to_pylist()
        expected = RegressionPredictor.from_pretrained(judge).predict([line["prompt"] for line in lines])
        assert [row.pop("prediction") for row in written] == pytest.approx(expected.tolist(), abs=1e-5)
        assert written == lines


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '\.txt'.*\.jsonl, \.json, \.csv, \.parquet"):
        main("judge", str(tmp_path / "rows.txt"), str(tmp_path / "out.parquet"), batch_size=3)
