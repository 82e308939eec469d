import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from support.training import GRID, lora, make

from raft_peft import RegressionPredictor
from raft_peft.training.trained_weights import active_adapter

STEPS = {"max_steps": 4, "learning_rate": 0.05, "renormalize": True}


def with_adapters(model, tmp_path, *names, active):
    """A model with adapters of these names, on a base that is saved."""
    model.save_pretrained(tmp_path / "base")
    first, *others = names
    adapted = get_peft_model(type(model).from_pretrained(tmp_path / "base"), lora(), adapter_name=first)
    for name in others:
        adapted.add_adapter(name, lora())
    adapted.base_model.set_adapter(active)
    return adapted


@pytest.mark.parametrize(("names", "active"), [(("stars",), "stars"), (("default", "stars"), "stars")])
def test_the_adapter_at_work_is_what_is_saved_resumed_and_opened(names, active, tiny_llama, tokenizer, tmp_path, rows):
    model = with_adapters(tiny_llama, tmp_path, *names, active=active)
    options = {**STEPS, "save_strategy": "steps", "save_steps": 2}
    trainer = make(model, tokenizer, tmp_path / "run", rows, options=options)
    trainer.train()
    trainer.save_model()
    expected = trainer.predict(Dataset.from_list(rows)).predictions
    prompts = [row["prompt"] for row in rows]
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-4"):
        assert not (folder / "stars").exists()
        predictor = RegressionPredictor.from_pretrained(folder)
        np.testing.assert_allclose(predictor.predict(prompts), expected, atol=1e-5)

    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    np.testing.assert_allclose(trainer.predict(Dataset.from_list(rows)).predictions, expected, atol=1e-4)


def test_several_at_once_are_refused(tiny_llama, tokenizer, tmp_path, rows):
    model = with_adapters(tiny_llama, tmp_path, "default", "stars", active=["default", "stars"])
    with pytest.raises(ValueError, match=r"'default', 'stars' are active at the same time.*set_adapter"):
        make(model, tokenizer, tmp_path, rows)


def test_its_name_is_that_of_the_base_tuner(tiny_llama, tmp_path):
    assert active_adapter(tiny_llama) is None
    model = with_adapters(tiny_llama, tmp_path, "default", "stars", active="stars")
    assert active_adapter(model) == "stars"
    assert model.active_adapter == "stars"


class TestFrozen:
    def test_all_weights(self, tiny_llama, tokenizer, tmp_path, rows):
        tiny_llama.requires_grad_(False)
        trainer = make(tiny_llama, tokenizer, tmp_path, rows)
        with pytest.raises(ValueError, match=r"All weights of the model are frozen.*requires_grad_\(True\)"):
            trainer.train()

    def test_all_but_a_head(self, tiny_llama, tokenizer, tmp_path, rows):
        tiny_llama.requires_grad_(False)
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"max_steps": 2, "method": "pooled"})
        before = trainer.readout.head.bias.item()
        trainer.train()
        assert trainer.readout.head.bias.item() != before

    @pytest.mark.parametrize("method", ["raft", "pooled"])
    def test_an_adapter_as_peft_opens_it(self, method, tiny_llama, tokenizer, tmp_path, rows):
        saved = with_adapters(tiny_llama, tmp_path, "default", active="default")
        saved.save_pretrained(tmp_path / "adapter")
        base = saved.unload()
        model = PeftModel.from_pretrained(base, tmp_path / "adapter")
        trainer = make(model, tokenizer, tmp_path / "run", rows, options={"max_steps": 1, "method": method})
        with pytest.raises(ValueError, match=r"'default' are frozen.*is_trainable=True"):
            trainer.train()
        trainer.evaluate(Dataset.from_list(rows))

    def test_the_adapter_at_work_beside_one_that_is_not(self, tiny_llama, tokenizer, tmp_path, rows):
        model = with_adapters(tiny_llama, tmp_path, "default", "stars", active="stars")
        for name, weight in model.named_parameters():
            weight.requires_grad_("default" in name.split("."))
        with pytest.raises(ValueError, match=r"adapter 'stars' are frozen"):
            make(model, tokenizer, tmp_path / "run", rows).train()


def test_training_into_the_folder_of_the_base_is_refused(tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.save_pretrained(tmp_path / "base")
    trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "base", rows, peft_config=lora())
    with pytest.raises(ValueError, match="holds the base model of the adapter"):
        trainer.train()
    with pytest.raises(ValueError, match="holds the base model of the adapter"):
        trainer.save_model()
    assert (tmp_path / "base" / "model.safetensors").is_file()


class TestOptimizers:
    def test_one_made_before_the_adapter(self, tiny_llama, tokenizer, tmp_path, rows):
        optimizer = torch.optim.AdamW(tiny_llama.parameters(), lr=1e-2)
        with pytest.raises(ValueError, match=r"does not know 12 of the 12 tensors.*optimizer_cls_and_kwargs"):
            make(tiny_llama, tokenizer, tmp_path, rows, peft_config=lora(), optimizers=(optimizer, None))

    def test_one_that_knows_all(self, tiny_llama, tokenizer, tmp_path, rows):
        model = get_peft_model(tiny_llama, lora())
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        trainer = make(
            model,
            tokenizer,
            tmp_path,
            rows,
            options={"max_steps": 2},
            optimizers=(torch.optim.AdamW(trained, lr=1e-2), None),
        )
        before = [weight.clone() for weight in trained]
        trainer.train()
        assert any(not torch.equal(*pair) for pair in zip(before, trained, strict=True))

    def test_one_that_knows_the_head_of_an_earlier_trainer(self, tiny_llama, tokenizer, tmp_path, rows):
        options = {"max_steps": 1, "method": "special_token"}
        make(tiny_llama, tokenizer, tmp_path, rows, options=options).train()
        optimizer = torch.optim.AdamW(tiny_llama.parameters(), lr=1e-2)
        make(tiny_llama, tokenizer, tmp_path, rows, options=options, optimizers=(optimizer, None)).train()


def test_weights_of_an_earlier_save_do_not_predict(tiny_llama, tokenizer, tmp_path, rows):
    """A whole model over an adapter, then an adapter over a whole model, then one without a head over one with."""
    tiny_llama.save_pretrained(tmp_path / "base")
    base, prompts = str(tmp_path / "base"), [row["prompt"] for row in rows]
    for arguments in (
        {"peft_config": lora(), "options": {**STEPS, "method": "pooled", "renormalize": False}},
        {"options": STEPS},
        {"peft_config": lora(), "options": STEPS},
    ):
        trainer = make(base, tokenizer, tmp_path / "run", rows, grid=GRID, **arguments)
        trainer.train()
        trainer.save_model()
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        predictor = RegressionPredictor.from_pretrained(tmp_path / "run")
        np.testing.assert_allclose(predictor.predict(prompts), expected, atol=1e-5)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "regression_head.safetensors").exists()
