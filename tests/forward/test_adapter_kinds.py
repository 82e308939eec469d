"""Adapters that look beyond a token are read row by row, and those that look beyond a row are refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AdaptionPromptConfig, LilyConfig, LoraConfig, get_peft_model
from support.training import GRID, lora, make

from raft_peft import RegressionPredictor
from raft_peft.forward.layout_choice import why_no_prefix_cache, why_not_a_tree, why_not_flat

# Numbers of several tokens, which a trie reads in one sequence where it can.
LONG = {0: "10", 1: "21", 2: "32", 3: "43"}


def activated(tokenizer):
    return LoraConfig(
        r=4,
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj"],
        alora_invocation_tokens=tokenizer(" score is")["input_ids"],
    )


def adapted(model, peft_config):
    """With weights that change the model, as after training."""
    model = get_peft_model(model, peft_config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return model


def test_which_layouts_they_are_read_in(tiny_llama, tokenizer):
    for why in (why_no_prefix_cache, why_not_a_tree):
        assert why(adapted(tiny_llama, lora(task_type="CAUSAL_LM"))) is None
    tiny_llama = tiny_llama.__class__(tiny_llama.config)
    for why in (why_not_flat, why_no_prefix_cache, why_not_a_tree):
        assert "activated LoRA" in why(adapted(tiny_llama, activated(tokenizer)))
    tiny_llama = tiny_llama.__class__(tiny_llama.config)
    prompts = AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM")
    assert "ADAPTION_PROMPT" in why_not_flat(get_peft_model(tiny_llama, prompts))


@pytest.mark.parametrize("grid", [GRID, LONG], ids=["one token", "several tokens"])
def test_a_batch_gives_what_its_rows_give_alone(tiny_llama, tokenizer, rows, grid):
    prompts = ["Rate the item 3 from 0 to 9: the score is 3 out of 9. " + row["prompt"] for row in rows]
    # Two prompts without the invocation tokens, on which the adapter does nothing.
    prompts += ["Rate the item 3 from 0 to 9: the", "Rate the item 3 from 0 to 9: the item"]
    plain = RegressionPredictor(tiny_llama, tokenizer, grid, renormalize=True).predict(prompts)
    predictor = RegressionPredictor(adapted(tiny_llama, activated(tokenizer)), tokenizer, grid, renormalize=True)
    alone = np.concatenate([predictor.predict([prompt]) for prompt in prompts])
    assert predictor.predict(prompts) == pytest.approx(alone, abs=1e-4)
    assert np.abs(alone - plain)[:-2].min() > 1e-3
    assert alone[-2:] == pytest.approx(plain[-2:], abs=1e-4)


def test_padding_free_is_left_off(tiny_llama, tokenizer, tmp_path, rows, caplog):
    trainer = make(
        adapted(tiny_llama, activated(tokenizer)), tokenizer, tmp_path, rows, options={"padding_free": True}
    )
    together = trainer.predict(Dataset.from_list(rows)).predictions
    alone = np.concatenate([trainer.predict(Dataset.from_list([row])).predictions for row in rows])
    assert together == pytest.approx(alone, abs=1e-4)
    assert not trainer.readout.padding_free
    assert "`padding_free=True` is left off" in caplog.text
    assert "activated LoRA" in caplog.text


def test_an_adapter_that_mixes_the_rows_of_a_batch_is_refused(tiny_llama, tokenizer, tmp_path, rows):
    lily = LilyConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    with pytest.raises(ValueError, match=r"type LILY.*all tokens of a batch.*Use LoRA"):
        make(tiny_llama, tokenizer, tmp_path, rows, peft_config=lily)
