"""What a run chooses for speed where its settings leave it open, and that the numbers stay as they are."""

import logging
import math

import pytest
import torch
from conftest import make_tiny_llama
from datasets import Dataset
from support.training import GRID, config, lora
from transformers import BloomConfig, BloomForCausalLM, LlamaForCausalLM

from raft_peft import RegressionAwareTrainer
from raft_peft.planning.settings import StepSettings
from raft_peft.planning.simulation import Skeleton
from raft_peft.training.speed import choice, step_memory
from raft_peft.training.speed.checkpointing import checkpointing_names
from raft_peft.training.speed.step_memory import bytes_of_step, extrapolated

LEFT_OPEN = {"gradient_checkpointing": None, "padding_free": None}


def make(model, tokenizer, folder, rows, peft_config=None, **options):
    return RegressionAwareTrainer(
        model,
        config(folder, **{**LEFT_OPEN, **options}),
        grid=GRID,
        processing_class=tokenizer,
        train_dataset=rows if rows is None or hasattr(rows, "features") else Dataset.from_list(rows),
        peft_config=peft_config,
    )


def chosen(trainer):
    return trainer.args.gradient_checkpointing, trainer.args.padding_free


def free(size, monkeypatch):
    monkeypatch.setattr(choice, "free_memory", lambda device: size)


def test_a_step_that_fits_is_not_computed_twice_and_has_no_padding(tiny_llama, tokenizer, tmp_path, rows, caplog):
    with caplog.at_level(logging.INFO, logger="raft_peft"):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, peft_config=lora())
    assert chosen(trainer) == (False, True)
    assert {getattr(trainer.args, name) for name in checkpointing_names(trainer.args)} == {False}
    assert trainer.readout.padding_free
    (said,) = [record.message for record in caplog.records if record.name == choice.logger.name]
    assert "`gradient_checkpointing=False`, since a step takes about 0.0 GB without it and " in said
    assert said.endswith("; `padding_free=True`.")
    # Without checkpointing nothing needs gradients that flow to the embeddings.
    assert not any(module._forward_hooks for module in trainer.model.modules())
    # The trial leaves no trace.
    modes, random = [module.training for module in trainer.model.modules()], torch.get_rng_state()
    assert not all(modes)
    bytes_of_step(trainer)
    assert [module.training for module in trainer.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_a_step_that_does_not_fit_is(tiny_llama, tokenizer, tmp_path, rows, caplog, monkeypatch):
    needed = bytes_of_step(make(tiny_llama, tokenizer, tmp_path, rows))
    free(1.5 * needed, monkeypatch)
    assert not make(tiny_llama, tokenizer, tmp_path, rows).args.gradient_checkpointing
    free(1.49 * needed, monkeypatch)
    with caplog.at_level(logging.INFO, logger="raft_peft"):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, max_steps=1)
    assert chosen(trainer) == (True, True)
    assert "less than 1.5 times as much" in caplog.text
    trainer.train()
    assert trainer.model.model.layers[0].gradient_checkpointing


def test_what_is_set_stays(tiny_llama, tokenizer, tmp_path, rows, caplog, monkeypatch):
    free(0, monkeypatch)
    with caplog.at_level(logging.INFO, logger="raft_peft"):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, gradient_checkpointing=False, padding_free=False)
    assert chosen(trainer) == (False, False)
    assert "Chosen for speed" not in caplog.text
    free(math.inf, monkeypatch)
    assert chosen(make(tiny_llama, tokenizer, tmp_path, rows, gradient_checkpointing=True)) == (True, True)
    # Who says how asks for it, and a model may come with it.
    assert config(tmp_path, **LEFT_OPEN, gradient_checkpointing_kwargs={"every_n_layers": 2}).gradient_checkpointing
    tiny_llama.gradient_checkpointing_enable()
    assert make(tiny_llama, tokenizer, tmp_path, rows).args.gradient_checkpointing


@pytest.mark.parametrize("options", [{"activation_checkpointing": False}, {"activation_checkpointing": True}])
def test_by_its_other_name(options, tmp_path):
    args = config(tmp_path, **LEFT_OPEN)
    if not hasattr(args, "activation_checkpointing"):
        pytest.skip("This version of transformers has one name for it.")
    assert (args.gradient_checkpointing, args.activation_checkpointing) == (None, None)
    args = config(tmp_path, **LEFT_OPEN, **options)
    assert args.gradient_checkpointing is options["activation_checkpointing"]


def test_where_it_cannot_be_known(tiny_llama, tokenizer, tmp_path, rows, monkeypatch):
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert chosen(make(tiny_llama, tokenizer, tmp_path, stream, max_steps=1)) == (True, True)
    assert chosen(make(tiny_llama, tokenizer, tmp_path, None)) == (True, False)

    def fails(*_):
        raise RuntimeError("an operation that does not exist")

    monkeypatch.setattr(step_memory, "kept_bytes", fails)
    assert chosen(make(tiny_llama, tokenizer, tmp_path, rows)) == (True, True)


def test_rows_stay_padded_without_a_warning_where_they_must(tiny_llama, tokenizer, tmp_path, rows, caplog):
    bloom = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))
    for model, options in ((bloom, {}), (tiny_llama, {"method": "ce"})):
        assert chosen(make(model, tokenizer, tmp_path, rows, **options)) == (False, False)
        assert not model.config._attn_implementation.startswith("flat")
    assert "padding_free" not in caplog.text


def test_losses_and_gradients_are_those_of_padded_rows(tokenizer, tmp_path, rows):
    """By default and as TRL has it, in float32."""
    found = []
    for options in ({}, {"gradient_checkpointing": True, "padding_free": False}):
        torch.manual_seed(0)
        trainer = make(
            make_tiny_llama(tokenizer), tokenizer, tmp_path, rows, **options, max_steps=3, logging_steps=1,
            per_device_train_batch_size=4, max_grad_norm=0, optim="sgd", learning_rate=1e-2,
        )  # fmt: skip
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((torch.tensor(losses), torch.cat([weight.flatten() for weight in trainer.model.parameters()])))
    (losses, weights), (expected, expected_weights) = found
    assert len(losses) == 3
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    # Plain gradient descent: what the weights differ by are the gradients.
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_memory_is_that_of_a_simulated_step(attention, tokenizer, tmp_path):
    """160 tokens are beyond what is measured. The backward pass of eager attention takes more for a while."""
    shape = make_tiny_llama(tokenizer).config
    shape.num_hidden_layers = 6
    model = LlamaForCausalLM(shape)
    model.set_attn_implementation(attention)
    rows = [{"input_ids": [5] * length, "label": 1.0} for length in (7, 160)]
    trainer = make(model, tokenizer, tmp_path, rows, peft_config=lora(), per_device_train_batch_size=4)
    settings = StepSettings(
        quantization="none", gradient_checkpointing=False, batch_size=4, accumulation=1, max_length=160, r=4,
        target_modules=("q_proj", "v_proj", "up_proj"), dtype="float32", bf16=False, optim="adamw_torch",
        attn_implementation=attention, device="cpu",
    )  # fmt: skip
    skeleton = Skeleton(shape, settings)
    simulated = skeleton.step(4)[:, 0].max() + skeleton.held().optimizer
    assert 0.8 * simulated < bytes_of_step(trainer) < 1.1 * simulated


def test_large_batches_from_small_ones():
    def kept(rows, tokens):
        return 1000 + rows * (50 + 3 * tokens + 2 * tokens**2)

    assert extrapolated(kept, 8, 1024) == pytest.approx(kept(8, 1024))
    assert extrapolated(kept, 8, 100) == pytest.approx(kept(8, 100))
    # In chunks of 256 tokens every short row keeps as much as a whole one.
    assert extrapolated(lambda rows, tokens: 256 * rows * -(-tokens // 256), 2, 1024) >= 2 * 1024
