"""Merged models predict what their adapters do."""

import json

import numpy as np
import pytest
import torch
from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig
from support.training import lora, make
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from raft_peft import RegressionPredictor, add_number_tokens, merge_and_save

ROWS = [{"prompt": f"Rate item {index}, the score is", "label": float(index % 5)} for index in range(6)]
PROMPTS = [row["prompt"] for row in ROWS]


def train(model, tokenizer, folder, *, options=None, adapter=None, **arguments):
    settings = {"max_steps": 4, "learning_rate": 0.05, "logging_steps": 1, **(options or {})}
    trainer = make(model, tokenizer, folder, ROWS, options=settings, peft_config=adapter or lora(), **arguments)
    trainer.train()
    trainer.save_model()
    return RegressionPredictor.from_pretrained(folder).predict(PROMPTS)


@pytest.fixture
def base(tiny_llama, tokenizer, tmp_path):
    """A folder, since an adapter names its base."""
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_merged_adapter(base, tokenizer, tmp_path):
    before = RegressionPredictor.from_pretrained(base, range(5)).predict(PROMPTS)
    expected = train(base, tokenizer, tmp_path / "adapter")
    assert np.abs(expected - before).max() > 0.01  # the adapter does something
    moved = merge_and_save(tmp_path / "adapter", tmp_path / "merged", prompts=PROMPTS)
    assert moved < 1e-5
    found = RegressionPredictor.from_pretrained(tmp_path / "merged")
    assert found.predict(PROMPTS) == pytest.approx(expected, abs=1e-5)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert (tmp_path / "merged" / "README.md").is_file()
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")  # an ordinary folder


def test_merged_head(base, tokenizer, tmp_path):
    expected = train(base, tokenizer, tmp_path / "adapter", options={"method": "pooled"})
    merge_and_save(tmp_path / "adapter", tmp_path / "merged")
    assert RegressionPredictor.from_pretrained(tmp_path / "merged").predict(PROMPTS) == pytest.approx(
        expected, abs=1e-5
    )


def test_merged_number_tokens(base, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    grid = add_number_tokens(model, tokenizer, (0, 4), granularity=0.5)
    expected = train(model, tokenizer, tmp_path / "adapter", grid=grid)
    merge_and_save(tmp_path / "adapter", tmp_path / "merged")
    assert RegressionPredictor.from_pretrained(tmp_path / "merged").predict(PROMPTS) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_merged_into_what_quantization_left(base, tokenizer, tmp_path, quantization):
    config = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        if quantization == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    expected = train(base, tokenizer, tmp_path / "adapter", quantization_config=config)
    # int8 rounds what its layers are given as well, which merged layers do not
    moved = merge_and_save(tmp_path / "adapter", tmp_path / "merged", prompts=PROMPTS, tolerance=0.1)
    assert moved < (1e-4 if quantization == "nf4" else 0.1)
    merged = RegressionPredictor.from_pretrained(tmp_path / "merged")
    assert not getattr(merged.model, "is_quantized", False)
    assert json.loads((tmp_path / "merged" / "raft_config.json").read_text())["quantization"] is None
    assert np.abs(merged.predict(PROMPTS) - expected).max() == pytest.approx(moved, abs=1e-5)


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (PrefixTuningConfig(num_virtual_tokens=4), "PREFIX_TUNING, cannot be merged: it adds keys and values"),
        (AdaptionPromptConfig(adapter_len=4, adapter_layers=2), "ADAPTION_PROMPT, cannot be merged: it adds keys"),
        (LoraConfig(target_modules=["q_proj"], lora_bias=True), "LORA, cannot be merged: .* no bias. Keep it"),
        (LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[5]), "LORA, cannot be merged: aLoRA"),
    ],
)
def test_adapters_that_weights_cannot_hold(base, tokenizer, tmp_path, adapter, reason):
    train(base, tokenizer, tmp_path / "adapter", adapter=adapter)
    with pytest.raises(ValueError, match=rf"adapter in '.*adapter', of the type {reason}"):
        merge_and_save(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged(base, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no raft_config.json"):
        merge_and_save(base, tmp_path / "merged")
    expected = train(base, tokenizer, tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="holds files already"):
        merge_and_save(tmp_path / "adapter", tmp_path / "full")
    assert (tmp_path / "full" / "notes").read_text() == "mine"
    with pytest.raises(ValueError, match=r"differ from the adapter's by up to .*Nothing was kept"):
        merge_and_save(tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16", prompts=PROMPTS, tolerance=1e-9)
    assert not (tmp_path / "merged").exists()
    merge_and_save(tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16", prompts=PROMPTS, tolerance=1)
    merged = RegressionPredictor.from_pretrained(tmp_path / "merged")
    assert merged.model.dtype == torch.bfloat16
    assert merged.predict(PROMPTS) == pytest.approx(expected, abs=0.2)
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_and_save(tmp_path / "merged", tmp_path / "again")
