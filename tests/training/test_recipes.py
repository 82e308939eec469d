"""Recipes, in the optimizer and the schedule that run."""

import json

import pytest
from datasets import Dataset, DatasetDict
from transformers import MambaConfig, TrainerCallback
from transformers.optimization import Adafactor

from raft_peft import RegressionAwareTrainer
from raft_peft.cli.command import main
from raft_peft.compare import CompareSettings
from raft_peft.compare.run import Run
from raft_peft.compare.trainers import trainer_of
from raft_peft.train import make_parser, run
from raft_peft.training.recipes import RECIPES, get_recipe

ROWS = [{"prompt": f"Rate the item {index}: the score is", "label": float(index % 5)} for index in range(4)]
PAPER = {
    # method, batch, steps, dropout, the step that is kept, learning rates at some steps
    "paper_gemma2": (16, 200_000, 0.1, "best", {0: 1e-5, 10_000: 1e-5, 199_999: 1e-5}),
    "paper_palm2": (64, 5_000, 0.0, "last", {0: 1e-5, 2_500: 1e-5, 4_999: 1e-5}),
    # From 1e-8 to 1e-5 in 10,000 steps, then half a cosine: half of it is left in the middle, and nothing at the end.
    "paper_movielens": (
        16,
        200_000,
        0.1,
        "best",
        {0: 1e-8, 5_000: 5.0055e-6, 10_000: 1e-5, 105_000: 5e-6, 199_999: 0},
    ),
}


@pytest.fixture
def folder(tiny_llama, tokenizer, tmp_path):
    path = tmp_path / "tiny"
    tiny_llama.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class MadeError(Exception):
    """Instead of training."""


def by_train(folder, name, monkeypatch, *options):
    """The trainer that `raft-peft train --recipe` makes."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def stop(self, **_):
        raise MadeError(self)

    monkeypatch.setattr(RegressionAwareTrainer, "train", stop)
    words = ["--model_name_or_path", str(folder), "--grid", "0..4", "--train_file", str(rows), "--recipe", name]
    more = ["--eval_file", str(rows), "--output_dir", str(folder / "out"), "--use_cpu", "true", "--bf16", "false"]
    with pytest.raises(MadeError) as made:
        run(make_parser(), [*words, *more, *options])
    return made.value.args[0]


def by_compare(folder, name, _):
    """The trainer of a run of `raft-peft compare --recipe`."""
    settings = CompareSettings(str(folder), str(folder / "out"), task="stsb", recipe=name)
    rows = Dataset.from_list(ROWS)
    told = Run(vars(settings), [(y, str(y)) for y in range(5)], "", "raft", seed=0, learning_rate=1e-5)
    return trainer_of(told, DatasetDict(train=rows, validation=rows, test=rows), folder, TrainerCallback())[0]


@pytest.mark.parametrize("made_by", [by_train, by_compare])
@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_is_what_runs(name, made_by, folder, monkeypatch, capsys):
    batch, steps, dropout, keep, rates = PAPER[name]
    trainer = made_by(folder, name, monkeypatch)
    args = trainer.args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.max_steps) == (batch, 1, steps)
    assert args.max_grad_norm == 0
    assert args.load_best_model_at_end == (keep == "best")
    assert args.metric_for_best_model == "rmse" and not args.greater_is_better
    assert trainer.model.config.attention_dropout == dropout
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    trainer.create_optimizer_and_scheduler(args.max_steps)
    optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
    if name == "paper_movielens":
        assert type(optimizer).__name__ == "AdamW"
    else:
        assert isinstance(optimizer, Adafactor)
        assert optimizer.defaults["eps"] == (1e-30, 1e-3)
        # The exponent of 1 - step^-0.8, which the paper writes without its sign.
        assert optimizer.defaults["decay_rate"] == -0.8
    for group in optimizer.param_groups:
        assert group["initial_lr"] == 1e-5 and group["weight_decay"] == 0
    found = {step: schedule.base_lrs[0] * schedule.lr_lambdas[0](step) for step in rates}
    assert found == {step: pytest.approx(rate, rel=1e-3, abs=1e-12) for step, rate in rates.items()}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[0])
    said = "The learning rate is 1e-05, one of 0.0001, 1e-05, 1e-06"
    assert made_by is by_compare or said in capsys.readouterr().out


def test_options_override_a_recipe(folder, monkeypatch):
    more = ["--learning_rate", "1e-6", "--max_steps", "7", "--warmup_steps", "2", "--lr_scheduler_type", "linear"]
    trainer = by_train(folder, "paper_movielens", monkeypatch, *more)
    args = trainer.args
    assert (args.learning_rate, args.max_steps, args.warmup_steps) == (1e-6, 7, 2)
    assert args.lr_scheduler_type == "linear" and args.lr_scheduler_kwargs is None
    lora = by_train(folder, "lora", monkeypatch, "--lora_r", "3")
    (adapter,) = lora.model.peft_config.values()
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (3, 32, 0.0)


def test_rates_are_swept_and_the_middle_one_is_for_a_single_run():
    for name in PAPER:
        assert get_recipe(name).learning_rates == (1e-4, 1e-5, 1e-6)
        assert CompareSettings("m", "o", recipe=name).rates() == [1e-4, 1e-5, 1e-6]
    assert get_recipe("paper_gemma2").learning_rate == 1e-5


def test_a_recipe_that_cannot_be_followed(folder, capsys):
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps(ROWS[0]) + "\n")
    words = ["train", "--model_name_or_path", str(folder), "--grid", "0..4", "--train_file", str(rows)]
    words += ["--output_dir", str(folder / "out"), "--use_cpu", "true", "--recipe"]
    assert main([*words, "paper_gemma2"]) == 1
    said = "The recipe keeps the best step on validation. Pass validation rows with --eval_file"
    assert said in capsys.readouterr().err
    assert main([*words, "paper_movielens", "--max_steps", "100", "--load_best_model_at_end", "false"]) == 1
    assert "The warm-up takes 10,000 of 100 steps" in capsys.readouterr().err
    assert main([*words, "secret"]) == 1
    assert f"There is no recipe 'secret'. Choose one of {', '.join(RECIPES)}." in capsys.readouterr().err


def test_a_model_without_dropout_is_trained_without_and_that_is_said(tmp_path, caplog):
    MambaConfig().save_pretrained(tmp_path)
    assert get_recipe("paper_gemma2").model_options(str(tmp_path)) == {}
    assert "The recipe's dropout of 0.1 is left out" in caplog.text
    caplog.clear()
    assert get_recipe("paper_palm2").model_options(str(tmp_path)) == {}
    assert not caplog.text
