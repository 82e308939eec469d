"""Models and adapters that the trainer opens by name, and adapters on the output matrix."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from support.training import GRID, lora, make
from transformers import BitsAndBytesConfig

from raft_peft import RegressionPredictor, merge_and_save

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def save(model, tokenizer, folder, *, tied=False):
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(tiny_llama, tokenizer, tmp_path):
    return save(tiny_llama, tokenizer, tmp_path / "base")


def trained(model, tokenizer, folder, rows, *, options=None, **arguments):
    settings = {"max_steps": 3, "learning_rate": 0.02, **(options or {})}
    trainer = make(model, tokenizer, folder, rows, options=settings, **arguments)
    trainer.train()
    trainer.save_model()
    return trainer


def predicted(trainer, rows):
    return trainer.predict(Dataset.from_list(rows)).predictions


def opened(folder, rows):
    return RegressionPredictor.from_pretrained(folder).predict([row["prompt"] for row in rows])


class TestAdapterByName:
    @pytest.mark.parametrize("quantization", [None, NF4], ids=["dense", "nf4"])
    @pytest.mark.parametrize("method", ["raft", "learnable_raft"])
    def test_training_goes_on_from_it(self, base, tokenizer, tmp_path, rows, method, quantization):
        first = trained(
            base,
            tokenizer,
            tmp_path / "first",
            rows,
            peft_config=lora(),
            quantization_config=quantization,
            options={"method": method},
        )
        # Neither tokenizer nor quantization is given again.
        second = make(
            str(tmp_path / "first"),
            None,
            tmp_path / "second",
            rows,
            options={"method": method, "max_steps": 3, "learning_rate": 0.02},
        )
        assert isinstance(second.model, PeftModel)
        assert getattr(second.model, "is_quantized", False) == (quantization is not None)
        assert predicted(second, rows) == pytest.approx(predicted(first, rows), abs=1e-5)
        second.train()
        second.save_model()
        assert np.abs(predicted(second, rows) - predicted(first, rows)).max() > 1e-3
        assert opened(tmp_path / "second", rows) == pytest.approx(predicted(second, rows), abs=1e-5)
        assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["base_model_name_or_path"] == base

    def test_in_the_dtype_of_before_unless_told_otherwise(self, base, tokenizer, tmp_path, rows):
        options = {"model_init_kwargs": {"dtype": "bfloat16"}}
        trained(base, tokenizer, tmp_path / "first", rows, peft_config=lora(), options=options)
        again = make(str(tmp_path / "first"), None, tmp_path / "second", rows)
        assert again.model.dtype == torch.bfloat16
        options = {"model_init_kwargs": {"dtype": "float32"}}
        again = make(str(tmp_path / "first"), None, tmp_path / "second", rows, options=options)
        assert again.model.dtype == torch.float32

    def test_a_new_adapter_on_top_is_refused(self, base, tokenizer, tmp_path, rows):
        trained(base, tokenizer, tmp_path / "first", rows, peft_config=lora())
        with pytest.raises(ValueError, match=r"first' holds an adapter, and `peft_config` asks.*merge_and_save"):
            make(str(tmp_path / "first"), None, tmp_path / "second", rows, peft_config=lora())

    def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(self, base, tokenizer, tmp_path, rows, tiny_llama):
        tiny_llama.name_or_path = base
        get_peft_model(tiny_llama, lora(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "bare")
        trainer = make(str(tmp_path / "bare"), None, tmp_path / "run", rows)
        assert trainer.processing_class.get_vocab() == tokenizer.get_vocab()
        path = tmp_path / "bare" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
        with pytest.raises(ValueError, match="does not say which model it is for"):
            make(str(tmp_path / "bare"), None, tmp_path / "run", rows)


class TestOutputMatrix:
    @pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
    def test_lora_on_it_is_trained_saved_and_merged(self, base, tokenizer, tmp_path, rows, autocast):
        adapter = LoraConfig(r=4, target_modules=["lm_head"])
        options = {"bf16": autocast, "use_cpu": True}
        untrained = RegressionPredictor.from_pretrained(base, GRID).predict([row["prompt"] for row in rows])
        trainer = trained(base, tokenizer, tmp_path / "run", rows, peft_config=adapter, options=options)
        found = predicted(trainer, rows)
        assert np.abs(found - untrained).max() > 1e-3
        assert opened(tmp_path / "run", rows) == pytest.approx(found, abs=1e-3)
        merge_and_save(tmp_path / "run", tmp_path / "merged")
        assert opened(tmp_path / "merged", rows) == pytest.approx(found, abs=0.02 if autocast else 1e-4)

    def test_the_model_keeps_its_own_way_to_name_it(self, tiny_llama, tokenizer, tmp_path, rows):
        make(tiny_llama, tokenizer, tmp_path, rows, peft_config=LoraConfig(r=4, target_modules=["lm_head"]))
        assert "get_output_embeddings" not in vars(tiny_llama)
        assert tiny_llama.get_output_embeddings() is tiny_llama.lm_head

    def test_a_tied_one_is_trained_and_not_merged(self, tiny_llama, tokenizer, tmp_path, rows):
        tied = save(tiny_llama, tokenizer, tmp_path / "tied", tied=True)
        adapter = LoraConfig(r=4, target_modules=["lm_head"])
        trainer = trained(tied, tokenizer, tmp_path / "run", rows, peft_config=adapter)
        assert opened(tmp_path / "run", rows) == pytest.approx(predicted(trainer, rows), abs=1e-5)
        with pytest.raises(ValueError, match=r"cannot be merged: .*one matrix.*Leave these two out"):
            merge_and_save(tmp_path / "run", tmp_path / "merged")

    def test_single_rows_of_a_tied_one(self, tiny_llama, tokenizer, tmp_path, rows):
        tied = save(tiny_llama, tokenizer, tmp_path / "tied", tied=True)
        adapter = TrainableTokensConfig(token_indices=tokenizer(" score is")["input_ids"])
        trainer = trained(tied, tokenizer, tmp_path / "run", rows, peft_config=adapter)
        found = predicted(trainer, rows)
        untrained = RegressionPredictor.from_pretrained(tied, GRID).predict([row["prompt"] for row in rows])
        assert np.abs(found - untrained).max() > 1e-3
        assert opened(tmp_path / "run", rows) == pytest.approx(found, abs=1e-5)
