"""`RegressionAwareTrainer` on rows with reasonings before their scores."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_llama
from datasets import Dataset
from support.reasonings import SCORE_PREFIX, reasoned_rows
from support.training import GRID, config

from raft_peft import RegressionAwareTrainer
from raft_peft.training.reasoning.trainer import ReasoningTrainer


def make(model, tokenizer, folder, rows=None, options=None, **arguments):
    return RegressionAwareTrainer(
        model,
        config(folder, **(options or {})),
        grid=GRID,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(reasoned_rows() if rows is None else rows),
        **arguments,
    )


def by_hand(model, tokenizer, rows, *, weight=1.0, prefix=SCORE_PREFIX):
    """RAFT at each score, and the cross-entropy of the reasonings, from the full logits of one sequence at a time."""
    scores, tokens_nll, predictions = [], [], []
    for row in rows:
        of_row = []
        for reasoning in row["reasoning"] or [None]:
            prompt = tokenizer(row["prompt"])["input_ids"]
            behind = prefix.rstrip() if reasoning is None else f" {reasoning}{prefix.rstrip()}"
            ids = tokenizer(row["prompt"] + behind + " ")["input_ids"]
            numbers = [tokenizer(f"{row['prompt']}{behind} {number}")["input_ids"] for number in GRID]
            assert ids[: len(prompt)] == prompt and all(one[:-1] == ids or len(one) == len(ids) for one in numbers)
            ids = numbers[0][:-1]
            logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            probs = logits[-1, [one[-1] for one in numbers]].exp()
            prediction = (probs * torch.tensor(GRID, dtype=torch.float32)).sum()
            scores.append((prediction - row["label"]) ** 2)
            of_row.append(prediction)
            if reasoning is not None:
                targets = torch.tensor(ids[len(prompt) :])
                tokens_nll.append(-logits[len(prompt) - 1 : -1].gather(1, targets[:, None]).squeeze(1))
        predictions.append(torch.stack(of_row).mean())
    nll = torch.cat(tokens_nll)
    return torch.stack(scores).mean() + weight * nll.mean(), nll.mean(), torch.stack(predictions)


def gradients(model):
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize(("batch", "steps"), [(8, 1), (1, 8), (3, 3)])
def test_loss_and_gradients_are_those_of_full_logits(tokenizer, tmp_path, padding_free, batch, steps):
    rows, weight = reasoned_rows(), 0.7
    expected_model = make_tiny_llama(tokenizer)
    expected, _, _ = by_hand(expected_model, tokenizer, rows, weight=weight)
    expected.backward()
    options = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": steps,
        "padding_free": padding_free,
        "reasoning_weight": weight,
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 1e9,
        "logging_steps": 1,
    }
    model = make_tiny_llama(tokenizer)
    trainer = make(model, tokenizer, tmp_path, rows, options)
    assert isinstance(trainer, ReasoningTrainer)
    kept = {}

    def keep(optimizer, *_):
        kept["gradients"] = gradients(model).clone()

    trainer.create_optimizer().register_step_pre_hook(keep)
    trainer.train()
    found = trainer.state.log_history[0]
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(kept["gradients"], gradients(expected_model), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("padding_free", [False, True])
def test_an_evaluation_reads_the_mean_over_the_reasonings(tokenizer, tmp_path, padding_free):
    rows = reasoned_rows()
    model = make_tiny_llama(tokenizer)
    with torch.no_grad():
        _, nll, expected = by_hand(model, tokenizer, rows)
    trainer = make(model, tokenizer, tmp_path, rows, {"padding_free": padding_free})
    metrics = trainer.evaluate(Dataset.from_list(rows))
    labels = torch.tensor([row["label"] for row in rows])
    assert metrics["eval_rmse"] == pytest.approx((expected - labels).square().mean().sqrt().item(), rel=1e-5)
    assert metrics["eval_reasoning_loss"] == pytest.approx(nll.item(), rel=1e-5)
    predicted = trainer.predict(Dataset.from_list(rows))
    np.testing.assert_allclose(predicted.predictions, expected.numpy(), atol=1e-5)
    assert predicted.distribution.log_probs.shape == (8, len(GRID))
