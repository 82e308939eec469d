"""Models in parts on several places: what accelerate moves there and back while it runs predicts the same numbers."""

import pytest
import torch
from support.training import lora, make

from raft_peft import RegressionPredictor

PROMPTS = ["Rate tea from 0 to 4, the score is", "Rate a cup of very hot tea from 0 to 4, the score is", "Rate it:"]
LAYERS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("grid", [[0, 1, 2, 3, 4], [0, 0.5, 1, 10]], ids=["single tokens", "several tokens"])
@pytest.mark.parametrize("elsewhere", [("model.layers.1",), ("model.layers.0", "model.norm", "lm_head"), LAYERS])
def test_parts_on_disk(elsewhere, grid, tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    device_map = {layer: "disk" if layer in elsewhere else "cpu" for layer in LAYERS}
    parted = RegressionPredictor.from_pretrained(
        tmp_path / "model", grid, device_map=device_map, offload_folder=str(tmp_path / "offloaded")
    )
    assert any(parameter.device.type == "meta" for parameter in parted.model.parameters())
    whole = RegressionPredictor.from_pretrained(tmp_path / "model", grid)
    assert parted.predict(PROMPTS) == pytest.approx(whole.predict(PROMPTS), abs=1e-5)


def test_an_adapter_and_a_head_on_parts(tiny_llama, tokenizer, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where PEFT lays what it offloads
    tiny_llama.save_pretrained(tmp_path / "base")
    options = {"max_steps": 2, "method": "logits_mlp", "learning_rate": 1e-2}
    trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "out", rows, options=options, peft_config=lora())
    trainer.train()
    trainer.save_model()
    device_map = {layer: "disk" if layer == "model.layers.0" else "cpu" for layer in LAYERS}
    parted = RegressionPredictor.from_pretrained(
        tmp_path / "out", device_map=device_map, offload_folder=str(tmp_path / "offloaded")
    )
    whole = RegressionPredictor.from_pretrained(tmp_path / "out")
    assert parted.predict(PROMPTS) == pytest.approx(whole.predict(PROMPTS), abs=1e-5)
    assert torch.isfinite(torch.tensor(parted.predict(PROMPTS))).all()
