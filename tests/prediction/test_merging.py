"""Merged models predict what their adapters do."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig
from support.training import lora, make
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from raft_peft import RegressionPredictor, add_number_tokens, merge_and_save
from raft_peft.prediction import merging

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
    moved, tolerance, reason = merge_and_save(tmp_path / "adapter", tmp_path / "merged", prompts=PROMPTS)
    assert moved < 1e-5
    assert tolerance == pytest.approx(4e-3)
    assert reason == "Both compute in float32, and the merged model adds in a different order."
    found = RegressionPredictor.from_pretrained(tmp_path / "merged")
    assert found.predict(PROMPTS) == pytest.approx(expected, abs=1e-5)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")  # an ordinary folder


def test_card_calibration_and_permissions(base, tokenizer, tmp_path, caplog):
    """Of the merged model, which has a name of its own and can be read by all who may read the adapter."""
    train(base, tokenizer, tmp_path / "adapter")
    adapter = RegressionPredictor.from_pretrained(tmp_path / "adapter")
    adapter.calibrate(PROMPTS * 4, [row["label"] for row in ROWS] * 4).save(tmp_path / "adapter")
    merge_and_save(tmp_path / "adapter", tmp_path / "merged")
    assert "do not look like those of training" not in caplog.text
    merged = RegressionPredictor.from_pretrained(tmp_path / "merged")
    found, expected = (one.predict(PROMPTS, interval=0.9) for one in (merged, adapter))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.model_name == "merged"
    assert card.text.lstrip().startswith("# merged\n\nThe adapter adapter, merged into its base model.\n")
    assert 'RegressionPredictor.from_pretrained("merged")' in card.text
    assert 'from_pretrained("adapter")' not in card.text
    (tmp_path / "usual").write_text("")
    modes = {path.name: path.stat().st_mode for path in (*(tmp_path / "adapter").iterdir(), *merged_files(tmp_path))}
    assert set(modes.values()) == {(tmp_path / "usual").stat().st_mode}
    assert not any(str(tmp_path) in path.read_text(errors="replace") for path in merged_files(tmp_path))


def merged_files(folder):
    return list((folder / "merged").iterdir())


def test_products_in_16_bits(base, tokenizer, tmp_path):
    """Under autocast to bf16 the tolerance is that of bf16. In float32 both predict the same, and it is kept."""
    train(base, tokenizer, tmp_path / "adapter", options={"bf16": True})
    _, tolerance, reason = merge_and_save(tmp_path / "adapter", tmp_path / "merged", prompts=PROMPTS, tolerance=None)
    assert tolerance == pytest.approx(0.08)
    assert "computed in bfloat16" in reason
    with pytest.raises(ValueError, match=r"Products are computed in bfloat16, .* Merge with `autocast='float32'`"):
        merge_and_save(tmp_path / "adapter", tmp_path / "strict", prompts=PROMPTS, tolerance=0)
    found = merge_and_save(tmp_path / "adapter", tmp_path / "exact", prompts=PROMPTS, autocast="float32")
    assert found.moved < 1e-5
    assert json.loads((tmp_path / "exact" / "raft_config.json").read_text())["autocast"] is None


def test_a_calibration_does_not_outlive_what_rounding_cannot_explain(base, tokenizer, tmp_path, caplog):
    train(base, tokenizer, tmp_path / "adapter")
    adapter = RegressionPredictor.from_pretrained(tmp_path / "adapter")
    adapter.calibrate(PROMPTS, [row["label"] for row in ROWS]).save(tmp_path / "adapter")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING"):
        patch.setattr(merging, "_TOLERANCE", -1.0)
        merge_and_save(tmp_path / "adapter", tmp_path / "merged", tolerance=1)
    assert "The calibration was left out, since predictions changed" in caplog.text
    assert not (tmp_path / "merged" / "calibration.json").exists()


def test_nothing_is_left_of_a_merge_that_fails(base, tokenizer, tmp_path, monkeypatch):
    train(base, tokenizer, tmp_path / "adapter")

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(merging, "merged_card", fail)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(OSError, match="No space left"):
            merge_and_save(tmp_path / "adapter", tmp_path / name)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


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
    moved, _, reason = merge_and_save(tmp_path / "adapter", tmp_path / "merged", prompts=PROMPTS, tolerance=0.1)
    assert "base is quantized" in reason
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
