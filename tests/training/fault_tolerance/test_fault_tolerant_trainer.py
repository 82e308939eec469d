"""A loss or gradient that is not a number: nothing is trained on it, and nothing is lost."""

import itertools

import pytest
import torch
from support.training import lora, make

from raft_peft.training.fault_tolerance.checkpoints import last_whole_checkpoint
from raft_peft.training.fault_tolerance.trainer import NonFiniteLossError


def broken_loss(label, in_gradient):
    """A squared error that is NaN, or has a gradient that is, for one label."""

    def loss(predictions, targets):
        losses = (predictions - targets).square()
        if in_gradient:
            root = torch.where(targets == label, predictions - predictions.detach(), 1.0).sqrt()
            return losses + torch.where(targets == label, root, 0.0)
        return losses + torch.where(targets == label, float("nan"), 0.0)

    return loss


def weights_of(trainer):
    return [weight.detach().clone() for weight in trainer.model.parameters() if weight.requires_grad]


def options(**changed):
    return {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-2,
        **changed,
    }


@pytest.mark.parametrize("in_gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_stops_before_the_step_and_names_the_rows(in_gradient, accumulation, tiny_llama, tokenizer, tmp_path, rows):
    settings = options(gradient_accumulation_steps=accumulation, per_device_train_batch_size=2 // accumulation, seed=1)
    label = rows[6]["label"]
    trainer = make(
        tiny_llama,
        tokenizer,
        tmp_path,
        rows,
        options=settings,
        loss=broken_loss(label, in_gradient),
        peft_config=lora(),
    )
    kind = "gradient" if in_gradient else "loss"
    with pytest.raises(NonFiniteLossError, match=rf"The {kind} of step 4 is not a finite number") as error:
        trainer.train()
    text = str(error.value)
    assert f"label {label:g}: '{rows[6]['prompt']}" in text
    assert (f"label {rows[7]['label']:g}:" in text) is in_gradient  # of a gradient, the step's rows are all there is
    assert f"label {rows[5]['label']:g}:" not in text
    assert f"saved in {tmp_path / 'checkpoint-3'}" in text
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert trainer.state.global_step == 3
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer))


@pytest.mark.parametrize("in_gradient", [False, True], ids=["loss", "gradient"])
def test_skips_the_step_alone(in_gradient, tiny_llama, tokenizer, tmp_path, rows, caplog):
    loss = broken_loss(rows[2]["label"], in_gradient)
    settings = options(non_finite_loss="skip", lr_scheduler_type="constant", warmup_steps=0)
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options=settings, loss=loss, peft_config=lora())
    seen = [weights_of(trainer)]
    step = trainer.create_optimizer().step
    trainer.optimizer.step = lambda *arguments: (step(*arguments), seen.append(weights_of(trainer)))[0]
    trainer.train()
    assert trainer.state.global_step == 4
    moved = [
        any(not torch.equal(a, b) for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(seen)
    ]
    assert moved == [True, False, True, True]
    assert "of step 2 is not a finite number" in caplog.text
    assert "stay as they are" in caplog.text
    assert not list(tmp_path.glob("checkpoint-*"))


def test_nothing_is_skipped_for_ever(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options=options(non_finite_loss="skip"), peft_config=lora())
    with torch.no_grad():
        next(weight for weight in trainer.model.parameters() if weight.requires_grad).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="The weights are not finite either"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_first_step(tiny_llama, tokenizer, tmp_path, rows):
    loss = broken_loss(rows[0]["label"], False)
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options=options(), loss=loss, peft_config=lora())
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*\n.*\n.*learning rate.*\nNo step was taken before"):
        trainer.train()


def test_training_goes_on_from_what_was_saved(tiny_llama, tokenizer, tmp_path, rows):
    """What the error advises: the same run, with the step left out."""
    loss = broken_loss(rows[4]["label"], False)

    def run(folder, **settings):
        return make(
            _again(tiny_llama),
            tokenizer,
            tmp_path / folder,
            rows,
            options=options(**settings),
            loss=loss,
            peft_config=lora(),
        )

    torch.manual_seed(0)
    stopped = run("stopped")
    with pytest.raises(NonFiniteLossError):
        stopped.train()
    resumed = run("stopped", non_finite_loss="skip")
    resumed.train(resume_from_checkpoint=True)
    torch.manual_seed(0)
    skipped = run("skipped", non_finite_loss="skip")
    skipped.train()
    torch.testing.assert_close(weights_of(resumed), weights_of(skipped), rtol=0, atol=1e-7)


def _again(model):
    copied = type(model)(model.config)
    copied.load_state_dict(model.state_dict())
    return copied
