"""The idea of the library in plain torch, as the documentation shows it, against the library itself."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.training import GRID, make
from transformers import AutoModelForCausalLM

import raft_peft.forward
from raft_peft import RegressionPredictor

ARCHITECTURE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def code_of(text):
    return re.search(r"```python\n(def raft\(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture
def raft():
    names = {"torch": torch}
    exec(code_of(raft_peft.forward.__doc__), names)
    return names["raft"]


def test_the_documentation_shows_the_same_code():
    assert code_of(ARCHITECTURE.read_text(encoding="utf-8")) == code_of(raft_peft.forward.__doc__)


def test_it_is_short():
    assert len(code_of(raft_peft.forward.__doc__).splitlines()) <= 15


def test_predictions_and_loss_are_those_of_the_trainer(raft, tiny_llama, tokenizer, tmp_path, rows):
    targets = torch.tensor([row["label"] for row in rows])
    with torch.no_grad():
        predictions, loss = raft(tiny_llama, tokenizer, [row["prompt"] for row in rows], GRID, targets)
    trainer = make(tiny_llama, tokenizer, tmp_path, rows)
    output = trainer.predict(Dataset.from_list(rows))
    np.testing.assert_allclose(output.predictions, predictions, atol=1e-5)
    assert output.metrics["test_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_predictions_of_a_real_model(raft, smollm2, smollm2_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32")
    prompts = [
        "Review: It broke on day two. Stars from 1 to 5:",
        "Review: Best purchase ever, truly. Stars from 1 to 5:",
    ]
    with torch.no_grad():
        predictions, _ = raft(model, smollm2_tokenizer, prompts, [1, 2, 3, 4, 5], torch.tensor([1.0, 5.0]))
    predictor = RegressionPredictor(model, smollm2_tokenizer, [1, 2, 3, 4, 5])
    np.testing.assert_allclose(predictor.predict(prompts), predictions, atol=1e-4)
