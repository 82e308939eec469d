import pytest
import torch
from datasets import Dataset
from support.training import make

LOSSES = torch.tensor([1.0, 2.0, 6.0])


def test_the_mean_over_the_examples_of_a_step(tiny_llama, tokenizer, tmp_path):
    trainer = make(tiny_llama, tokenizer, tmp_path)
    assert trainer._mean_over_examples(LOSSES, {}, None) == 3
    assert trainer._mean_over_examples(LOSSES, {}, 12) == 9 / 12
    counts = {"counts": torch.tensor([True, False, True])}
    assert trainer._mean_over_examples(LOSSES, counts, 12) == 7 / 12


def test_the_examples_of_a_step_are_counted_over_its_batches(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, rows)
    batches = [trainer.data_collator(list(trainer.train_dataset)[start : start + 3]) for start in (0, 3, 6)]
    assert trainer._get_num_items_in_batch(batches, torch.device("cpu")) == 3 + 3 + 2
    assert trainer._get_num_items_in_batch([], torch.device("cpu")) is None


def test_an_entry_of_the_log_says_what_was_seen_since_the_last(tiny_llama, tokenizer, tmp_path, rows):
    """Two steps an entry, and after each step an evaluation, which adds nothing to it."""
    options = {
        "max_steps": 4,
        "logging_steps": 2,
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options=options, eval_dataset=Dataset.from_list(rows))
    trainer.train()
    lengths = [len(tokenizer(row["prompt"]).input_ids) for row in rows]
    masses = trainer.predict(Dataset.from_list(rows)).distribution.mass
    of_batches = [masses[start : start + 2].mean().item() for start in (0, 2, 4, 6)]
    first, last = (entry for entry in trainer.state.log_history if "num_tokens" in entry)
    assert (first["step"], last["step"]) == (2, 4)
    assert (first["num_tokens"], last["num_tokens"]) == (sum(lengths[:4]), sum(lengths))
    assert first["grid_mass"] == pytest.approx(sum(of_batches[:2]) / 2, rel=1e-4)
    assert last["grid_mass"] == pytest.approx(sum(of_batches[2:]) / 2, rel=1e-4)
    evaluations = [entry for entry in trainer.state.log_history if "eval_rmse" in entry]
    assert len(evaluations) == 4
    assert not [name for entry in evaluations for name in entry if name in ("num_tokens", "eval_num_tokens")]
