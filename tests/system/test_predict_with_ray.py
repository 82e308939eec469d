"""Offline prediction with Ray Data, where it is installed: pip install 'ray[data]'."""

import json

import pyarrow.parquet
import pytest
from support.training import lora, make

from raft_peft import RegressionPredictor

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


def test_adds_the_predictions_and_does_not_write_twice(cluster, tiny_llama, tokenizer, rows, tmp_path):
    from examples.predict_with_ray import main

    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make(str(tmp_path / "base"), tokenizer, tmp_path / "judge", rows, peft_config=lora()).save_model()
    source, target = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {"actors": 1, "gpus_per_actor": 0, "batch_size": 3}
    main(str(tmp_path / "judge"), str(source), str(target), **arguments)
    written = {row["prompt"]: row for row in pyarrow.parquet.read_table(target).to_pylist()}
    expected = RegressionPredictor.from_pretrained(tmp_path / "judge").predict([row["prompt"] for row in rows])
    assert [written[row["prompt"]]["prediction"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [written[row["prompt"]]["label"] for row in rows] == [row["label"] for row in rows]
    with pytest.raises(ValueError):
        main(str(tmp_path / "judge"), str(source), str(target), **arguments)
