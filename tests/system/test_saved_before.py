"""Folders that an earlier version saved: they open, and predict the numbers that they predicted then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raft_peft import RegressionPredictor

FOLDER = Path(__file__).resolve().parents[1] / "support" / "saved_by_0_1_0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.mark.parametrize("name", ["raft", "logits_mlp", "several_tokens"])
def test_the_numbers_are_those_of_then(name, tmp_path):
    """Three tiny adapters on one base: with a head of its own, and with numbers of several tokens."""
    base, adapter = tmp_path / "base", tmp_path / name
    shutil.copytree(FOLDER / "base", base)
    shutil.copytree(FOLDER / name, adapter)
    for file in TOKENIZER:
        shutil.copy(FOLDER / "base" / file, adapter)
    for file in adapter.glob("*.json"):
        file.write_text(file.read_text(encoding="utf-8").replace('"BASE"', json.dumps(str(base))), encoding="utf-8")
    predictor = RegressionPredictor.from_pretrained(adapter, dtype="float32")
    np.testing.assert_allclose(predictor.predict(EXPECTED["prompts"]), EXPECTED[name]["predictions"], atol=1e-5)
    if "log_probs" in EXPECTED[name]:
        log_probs = predictor.predict_distribution(EXPECTED["prompts"]).log_probs
        np.testing.assert_allclose(log_probs, EXPECTED[name]["log_probs"], atol=1e-4)
