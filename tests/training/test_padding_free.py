"""`padding_free=True`: the same numbers and the same training, without padding."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.training import lora, make
from transformers import BloomConfig, BloomForCausalLM

from raft_peft import NumberGrid, RegressionPredictor

SEVERAL = NumberGrid([0, 1, 1.5, 2, 10])


def copy_of(model):
    copied = type(model)(model.config)
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (range(5), {}),
        (SEVERAL, {}),
        (range(5), {"method": "pooled"}),
        (range(5), {"attention": "bidirectional"}),
        (SEVERAL, {"gradient_checkpointing": True}),
        (range(5), {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    ],
    ids=["single tokens", "several tokens", "pooled", "bidirectional", "checkpointing", "accumulation"],
)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma2"])
def test_trains_to_the_same_weights(family, grid, options, tokenizer, tmp_path, rows, request):
    model = request.getfixturevalue(family)
    weights, predictions = [], []
    for padding_free in (False, True):
        torch.manual_seed(0)
        trainer = make(
            copy_of(model),
            tokenizer,
            tmp_path,
            rows,
            grid=grid,
            options={**options, "max_steps": 3, "padding_free": padding_free},
        )
        trainer.train()
        assert trainer.readout.padding_free is padding_free
        weights.append(torch.cat([parameter.flatten().float() for parameter in trainer.model.parameters()]))
        predictions.append(trainer.predict(Dataset.from_list(rows)).predictions)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-4)
    np.testing.assert_allclose(*predictions, atol=1e-4)


def test_a_batch_is_one_row_of_real_tokens(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"padding_free": True, "max_steps": 1})
    shapes, logits = [], []
    tiny_llama.model.embed_tokens.register_forward_hook(lambda _module, inputs, _: shapes.append(inputs[0].shape))
    tiny_llama.register_forward_pre_hook(lambda *_: None)
    tiny_llama.lm_head.register_forward_hook(lambda _module, _inputs, output: logits.append(output.shape))
    trainer.train()
    encoded = [tokenizer(row["prompt"]).input_ids for row in rows]
    common = 0
    while len({tuple(ids[: common + 1]) for ids in encoded}) == 1:
        common += 1
    assert common > 0
    assert shapes[-1] == (1, common + sum(len(ids) - common for ids in encoded))
    assert logits[-1] == (1, 8, len(tokenizer))


def test_comes_back_as_an_ordinary_folder(tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.save_pretrained(tmp_path / "base")
    options = {"padding_free": True, "max_steps": 2}
    trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "run", rows, peft_config=lora(), options=options)
    trainer.train()
    trainer.save_model()
    again = RegressionPredictor.from_pretrained(tmp_path / "run")
    assert again.model.config._attn_implementation == "sdpa"
    found = again.predict([row["prompt"] for row in rows], batch_size=3)
    np.testing.assert_allclose(found, trainer.predict(Dataset.from_list(rows)).predictions, atol=1e-5)


def test_a_model_that_cannot_is_padded_and_it_is_said_once(tokenizer, tmp_path, rows, caplog):
    bloom = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))
    trainer = make(bloom, tokenizer, tmp_path, rows, options={"padding_free": True, "max_steps": 2})
    with caplog.at_level(logging.WARNING, logger="raft_peft"):
        trainer.train()
    said = [record.message for record in caplog.records if "padding_free" in record.message]
    assert len(said) == 1
    assert not trainer.readout.padding_free
