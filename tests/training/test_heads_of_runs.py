"""Which head trains, predicts and is saved, where a model was given one before."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from support.training import GRID, lora, make

from raft_peft import RegressionPredictor
from raft_peft.heads import Head
from raft_peft.heads.base import parameter

WIDE = {10.0 * value: str(value) for value in GRID}
STEPS = {"max_steps": 3, "learning_rate": 0.05}


def prompts_of(rows):
    return [row["prompt"] for row in rows]


def predictions(trainer, rows):
    return trainer.predict(Dataset.from_list(rows)).predictions


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"method": "pooled"}, {"method": "pooled", "pooling": "max"}),
        ({"method": "special_token"}, {"method": "special_token", "special_token": "<pad>"}),
        ({"method": "pooled"}, {"method": "raft"}),
        ({"method": "pooled"}, {"method": "special_token"}),
    ],
)
def test_one_model_trained_twice_is_saved_with_the_second_head(first, second, tiny_llama, tokenizer, tmp_path, rows):
    make(tiny_llama, tokenizer, tmp_path / "one", rows, options={**STEPS, **first}).train()
    trainer = make(tiny_llama, tokenizer, tmp_path / "two", rows, options={**STEPS, **second})
    trainer.train()
    trainer.save_model()
    predictor = RegressionPredictor.from_pretrained(tmp_path / "two")
    np.testing.assert_allclose(predictor.predict(prompts_of(rows)), predictions(trainer, rows), atol=1e-5)
    assert not [name for name in load_file(tmp_path / "two" / "model.safetensors") if "regression_head" in name]


def test_the_same_settings_go_on_with_the_head_and_another_grid_does_not(tiny_llama, tokenizer, tmp_path, rows):
    options = {**STEPS, "method": "learnable_raft"}
    first = make(tiny_llama, tokenizer, tmp_path, rows, options=options)
    first.train()
    assert make(tiny_llama, tokenizer, tmp_path, rows, options=options).readout.head is first.readout.head
    other = make(tiny_llama, tokenizer, tmp_path, rows, grid=WIDE, options=options)
    assert other.readout.values.tolist() == [0, 10, 20, 30, 40]
    # The first trainer saves, and goes on to train, its own.
    first.save_model(str(tmp_path / "first"))
    saved = load_file(tmp_path / "first" / "regression_head.safetensors")["weight"]
    assert torch.equal(saved, first.readout.head.weight)
    first.train()
    assert tiny_llama.regression_head is first.readout.head
    assert not torch.equal(saved, first.readout.head.weight)


def test_a_head_that_the_base_carries_trains_under_a_new_adapter(tiny_llama, tokenizer, tmp_path, rows):
    options = {**STEPS, "method": "special_token"}
    first = make(tiny_llama, tokenizer, tmp_path, rows, options=options)
    first.train()
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, peft_config=lora(), options=options)
    before = trainer.readout.head.bias.item()
    trainer.train()
    assert trainer.readout.head is first.readout.head
    assert trainer.readout.head.bias.item() != before
    assert "regression_head" not in tiny_llama._modules


def test_heads_of_hidden_states_on_a_compiled_model(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={**STEPS, "method": "pooled"})
    trainer.train()
    compiled = RegressionPredictor(torch.compile(tiny_llama, backend="eager"), tokenizer, GRID, method="pooled")
    np.testing.assert_allclose(compiled.predict(prompts_of(rows)), predictions(trainer, rows), atol=1e-5)


def test_a_folder_of_another_head_is_trained_on_from_a_new_one(tiny_llama, tokenizer, tmp_path, rows, caplog):
    trained = make(tiny_llama, tokenizer, tmp_path, rows, options={**STEPS, "method": "learnable_raft"})
    trained.train()
    trained.save_model()
    with caplog.at_level(logging.WARNING, "raft_peft"):
        again = make(str(tmp_path), None, tmp_path / "two", rows, grid=WIDE, options={"method": "learnable_raft"})
    assert again.readout.values.tolist() == [0, 10, 20, 30, 40]
    assert "Training begins with a new head" in caplog.text
    with pytest.raises(ValueError, match=r"head of .* was trained for grid .*Leave the settings and the grid"):
        RegressionPredictor.from_pretrained(tmp_path, grid=WIDE)
    with pytest.raises(ValueError, match="was trained for method 'learnable_raft' and not 'special_token'"):
        RegressionPredictor.from_pretrained(tmp_path, method="special_token")


class TestHeadsThatNobodyTrained:
    def test_do_not_predict(self, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(
            tiny_llama, tokenizer, tmp_path, rows, peft_config=lora(), options={**STEPS, "method": "pooled"}
        )
        with pytest.raises(ValueError, match="does not carry a head that was trained"):
            RegressionPredictor(trainer.model, tokenizer, GRID, method="pooled")
        trainer.train()
        expected = predictions(trainer, rows)
        found = RegressionPredictor(trainer.model, tokenizer, GRID, method="pooled").predict(prompts_of(rows))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for settings in ({"method": "pooled", "pooling": "max"}, {"method": "special_token"}):
            with pytest.raises(ValueError, match=r"has parameters.*from_pretrained\(folder\)"):
                RegressionPredictor(trainer.model, tokenizer, GRID, **settings)
        with pytest.raises(ValueError, match="has parameters"):
            RegressionPredictor(trainer.model, tokenizer, WIDE, method="pooled")
        merged = trainer.model.merge_and_unload()
        with pytest.raises(ValueError, match="has parameters"):
            RegressionPredictor(merged, tokenizer, GRID, method="pooled")
        given = RegressionPredictor(merged, tokenizer, GRID, method="pooled", head=trainer.readout.head)
        np.testing.assert_allclose(given.predict(prompts_of(rows)), expected, atol=1e-4)

    def test_are_named_in_an_evaluation(self, tiny_llama, tokenizer, tmp_path, rows, caplog):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={**STEPS, "method": "pooled"})
        with caplog.at_level(logging.WARNING, "raft_peft"):
            predictions(trainer, rows)
            trainer.evaluate(Dataset.from_list(rows))
        assert caplog.text.count("The head of method 'pooled' is new") == 1
        caplog.clear()
        trainer.train()
        trainer.save_model()
        again = make(str(tmp_path), None, tmp_path / "two", rows, options={"method": "pooled"})
        with caplog.at_level(logging.WARNING, "raft_peft"):
            np.testing.assert_allclose(predictions(again, rows), predictions(trainer, rows), atol=1e-5)
        assert "is new" not in caplog.text


class DroppedHead(Head):
    """A head that predicts otherwise in training."""

    def __init__(self):
        super().__init__()
        self.bias = parameter(1, fill=2.0)

    def forward(self, final, grid_token_ids):
        return final.logits[:, 0].float() * 0 + self.bias + (100.0 if self.training else 0.0)


def test_a_predictor_leaves_the_model_as_it_is(tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.save_pretrained(tmp_path / "base")
    options = {**STEPS, "method": "pooled"}
    trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "run", rows, peft_config=lora(), options=options)
    trainer.train()
    expected = predictions(trainer, rows)
    own = RegressionPredictor(trainer.model, tokenizer, GRID, head=DroppedHead())
    assert own.predict(prompts_of(rows)).tolist() == [2.0] * len(rows)
    assert trainer.model.regression_head is trainer.readout.head
    trainer.save_model()
    found = RegressionPredictor.from_pretrained(tmp_path / "run")
    np.testing.assert_allclose(found.predict(prompts_of(rows)), expected, atol=1e-5)
    assert not hasattr(found.model, "regression_head")
