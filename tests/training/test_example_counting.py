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
    weights = {"weights": torch.tensor([2.0, 1.0, 3.0])}
    assert trainer._mean_over_examples(LOSSES, weights, None) == pytest.approx((2 * 1 + 1 * 2 + 3 * 6) / 6)
    assert trainer._mean_over_examples(LOSSES, weights, 10) == pytest.approx(22 / 10)
    assert trainer._mean_over_examples(LOSSES, {**weights, **counts}, 10) == pytest.approx(20 / 10)


def test_the_examples_of_a_step_are_counted_over_its_batches(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, rows)
    batches = [trainer.data_collator(list(trainer.train_dataset)[start : start + 3]) for start in (0, 3, 6)]
    assert trainer._get_num_items_in_batch(batches, torch.device("cpu")) == 3 + 3 + 2
    assert trainer._get_num_items_in_batch([], torch.device("cpu")) is None


def test_rows_weigh_by_their_raters_over_a_whole_step(tiny_llama, tokenizer, tmp_path, rows):
    """The logged loss of one step in batches of 2, 2 and 1 is the weighted mean over its 5 rows."""
    raters = (1, 3, 2, 5, 1)
    rated = [{**row, "label": [row["label"]] * count} for row, count in zip(rows, raters, strict=False)]
    options = {
        "max_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "learning_rate": 0.0,
        "weight_by_ratings": True,
    }
    trainer = make(tiny_llama, tokenizer, tmp_path, rated, options=options, eval_dataset=Dataset.from_list(rated))
    output = trainer.predict(Dataset.from_list(rated))
    squares = (output.predictions - output.label_ids) ** 2
    trainer.train()
    expected = sum(count * square for count, square in zip(raters, squares, strict=True)) / sum(raters)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(squares.mean(), rel=1e-3)


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
