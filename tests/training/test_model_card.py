"""The card of a saved model."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from support.training import lora, make

from raft_peft import RegressionPredictor
from raft_peft.data.prompt_shape import prompt_shape
from raft_peft.methods.saved_folder import PICTURE_NAME
from raft_peft.prediction.questions.calibration import QuestionCalibration
from raft_peft.training import model_card

ROWS = [{"prompt": f"Review: item {index} is fine. Stars:", "label": float(index % 5)} for index in range(8)]


@pytest.fixture
def base(tiny_llama, tokenizer, tmp_path):
    """A folder, since an adapter names its base."""
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_card_of_a_trained_adapter(base, tokenizer, tmp_path, monkeypatch):
    trainer = make(base, tokenizer, tmp_path / "stars-raft", ROWS, options={"max_steps": 2}, peft_config=lora())
    trainer.train()
    metrics = trainer.evaluate(Dataset.from_list(ROWS), metric_key_prefix="dev")
    trainer.save_model()
    card = ModelCard.load(tmp_path / "stars-raft" / "README.md")
    assert card.data.library_name == "raft-peft"
    assert {"text-regression", "raft", "raft-peft", "trl"} <= set(card.data.tags)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["rmse"] == pytest.approx(metrics["dev_rmse"], abs=1e-5)
    assert set(results) == {"rmse", "mae", "pearsonr", "spearmanr"}
    assert (
        "A `LlamaForCausalLM` language model (2 layers of width 32), fine-tuned to predict a **number**." in card.text
    )
    assert "| Grid | 0, 1, 2, 3, 4 (5 numbers) |" in card.text
    assert "| Trained weights | LORA, r = 4 |" in card.text
    assert f"| | dev |\n|---|---|\n| rows | 8 |\n| rmse | {metrics['dev_rmse']:.4g} |" in card.text
    assert f"| crps | {metrics['dev_crps']:.4g} |" in card.text
    assert "Review: item ... is fine. Stars:" in card.text
    assert "item 3" not in card.text  # nobody's data
    assert "lukasik2025better" in card.text
    assert "text-generation" not in card.content
    assert str(tmp_path) not in card.content
    assert (tmp_path / "stars-raft" / "prediction_and_truth.png").stat().st_size > 1000
    snippet = card.text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)  # the folder's name is that of the repository
    assert names["predictor"].grid == trainer.grid


def test_card_without_evaluation_or_training(tiny_llama, tokenizer, tmp_path):
    trainer = make(tiny_llama, tokenizer, tmp_path, options={"method": "rail"})
    trainer.create_model_card(dataset_name="nyu-mll/glue", tags="mine")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert card.data.datasets == "nyu-mll/glue"
    assert "mine" in card.data.tags
    assert "None yet" in card.text
    assert "asked for a **number** without training (zero-shot)." in card.text
    assert not (tmp_path / "prediction_and_truth.png").exists()


def test_card_of_chats_texts_of_numbers_and_metrics_that_are_undefined(tiny_llama, tokenizer, tmp_path):
    words = ["tea", "rain", "snow", "wind", "sun", "fog", "ice", "sleet"]
    rows = [
        {"prompt": [{"role": "user", "content": f"Is {word} good | bad? ```x```"}], "label": 1.0} for word in words
    ]
    trainer = make(
        tiny_llama, tokenizer, tmp_path, rows, grid={0: "a", 1: "b"}, options={"method": "pooled", "max_steps": 1}
    )
    trainer.train()
    with pytest.warns(UserWarning, match="undefined"):  # all labels are 1
        trainer.evaluate(Dataset.from_list(rows))
    trainer.save_model()
    card = ModelCard.load(tmp_path / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"rmse", "mae"}
    assert "0 as 'a', 1 as 'b'" in card.text
    assert "predict_distribution" not in card.text  # the method has none
    shape = json.loads(card.text.split("````text\n")[1].split("````")[0])
    assert shape == [{"role": "user", "content": "Is ... good | bad? ```x```"}]
    assert "Trained weights | all |" in card.text
    assert "A head reads the number" in card.text


def test_card_in_every_checkpoint(base, tokenizer, tmp_path, monkeypatch):
    """With its picture, which is drawn once and stands beside the card of `output_dir` too."""
    drawn, draw = [], model_card._draw
    monkeypatch.setattr(
        model_card, "_draw", lambda evaluations, folder: drawn.append(folder) or draw(evaluations, folder)
    )
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(
        base,
        tokenizer,
        tmp_path,
        ROWS,
        options=options,
        peft_config=lora(),
        eval_dataset=Dataset.from_list(ROWS),
    )
    trainer.train()
    for step in (1, 2):
        card = ModelCard.load(tmp_path / f"checkpoint-{step}" / "README.md")
        assert card.data.library_name == "raft-peft"
        assert f"| Steps | {step} of 8 rows" in card.text
        assert RegressionPredictor.from_pretrained(tmp_path / f"checkpoint-{step}").grid == trainer.grid
        assert PICTURE_NAME in card.text
    assert drawn == [tmp_path, tmp_path]
    pictures = [(tmp_path / folder / PICTURE_NAME).read_bytes() for folder in ("checkpoint-1", "checkpoint-2", ".")]
    assert pictures[1] == pictures[2]


def test_evaluations_are_kept_by_name(tiny_llama, tokenizer, tmp_path):
    dataset = Dataset.from_list(ROWS)
    trainer = make(tiny_llama, tokenizer, tmp_path, eval_dataset={"one": dataset, "two": dataset.select(range(3))})
    trainer.evaluate()
    found = trainer.predict(dataset)
    trainer.predict(dataset.remove_columns("label"), metric_key_prefix="none")
    assert {name: len(one.labels) for name, one in trainer.evaluations.items()} == {
        "eval_one": 8,
        "eval_two": 3,
        "test": 8,
    }
    assert np.array_equal(trainer.evaluations["test"].predictions, found.predictions)
    assert trainer.evaluations["test"].metrics["rmse"] == found.metrics["test_rmse"]


@pytest.mark.parametrize(
    "prompts, shape",
    [
        (["Review: a b. Stars:", "Review: c. Stars:"], "Review: ... Stars:"),
        (["prefix abc", "prefix abd"], "prefix ..."),
        (["abc end", "abd end"], "... end"),
        (["one"], "..."),
        (["same", "same"], "..."),
        (["x y", "x y y"], "x ..."),
        ([["a"], ["b"]], None),
        ([1, 2], None),
        ([], None),
        ([[{"role": "user", "content": "a b"}], [{"role": "system", "content": "a c"}]], None),
        ([[{"role": "user", "content": [{"type": "image"}]}]] * 2, None),
    ],
)
def test_prompt_shape(prompts, shape):
    assert prompt_shape(prompts) == shape


def test_a_model_that_has_diverged_is_still_saved(tiny_llama, tokenizer, tmp_path):
    torch.nn.init.constant_(tiny_llama.lm_head.weight, torch.nan)
    trainer = make(tiny_llama, tokenizer, tmp_path)
    trainer.evaluate(Dataset.from_list(ROWS))
    trainer.save_model()
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None


def test_a_collapse_is_said(tiny_llama, tokenizer, tmp_path, caplog):
    options = {"max_steps": 1, "renormalize": True}
    trainer = make(tiny_llama, tokenizer, tmp_path, ROWS, options=options, eval_dataset=Dataset.from_list(ROWS))
    trainer.train()
    trainer.evaluate()
    assert "whatever the prompt" not in caplog.text
    with torch.no_grad():
        tiny_llama.lm_head.weight.zero_()  # every prompt gets the same distribution
    with pytest.warns(UserWarning, match="undefined"):
        trainer.evaluate()
    assert "After step 1 all eval predictions are about" in caplog.text
    assert "smaller `learning_rate` (now 0.0002)" in caplog.text


def test_metrics_of_other_weights_are_left_out(tiny_llama, tokenizer, tmp_path):
    dataset = Dataset.from_list(ROWS)
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "rmse", "greater_is_better": True}
    options |= {"learning_rate": 0.05}  # the worst, and so the "best", is not the last
    trainer = make(tiny_llama, tokenizer, tmp_path, ROWS, options=options, peft_config=lora(), eval_dataset=dataset)
    trainer.evaluate(metric_key_prefix="before")
    trainer.train()
    assert trainer.state.best_global_step < 3
    trainer.save_model()
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None
    metrics = trainer.evaluate()
    trainer.save_model()
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert {result.dataset_split for result in results} == {"eval"}
    assert results[0].metric_value == pytest.approx(metrics["eval_rmse"], abs=1e-5)


def test_a_users_own_card_is_kept(tiny_llama, tokenizer, tmp_path):
    trainer = make(tiny_llama, tokenizer, tmp_path, grid={1: "5", 5: "1"})
    trainer.save_model()
    card = tmp_path / "README.md"
    assert "1 as '5', 5 as '1'" in card.read_text()
    edited = card.read_text().replace("<!-- Written by raft-peft", "<!-- Mine, no longer by raft-peft") + "\nMine."
    card.write_text(edited)
    trainer.save_model()
    trainer.create_model_card()
    assert card.read_text() == edited
    trainer.save_model(str(tmp_path / "another"))
    assert 'from_pretrained("another")' in (tmp_path / "another" / "README.md").read_text()


def test_few_or_equal_prompts_are_not_shown(tiny_llama, tokenizer, tmp_path):
    for rows in (ROWS[:3], [{"prompt": "Review: my secret. Stars:", "label": 1.0}] * 8):
        make(tiny_llama, tokenizer, tmp_path, rows).save_model()
        text = (tmp_path / "README.md").read_text()
        assert "Review" not in text


def test_a_card_that_cannot_be_written_does_not_end_the_run(tiny_llama, tokenizer, tmp_path, monkeypatch, caplog):
    trainer = make(tiny_llama, tokenizer, tmp_path)
    monkeypatch.setattr("raft_peft.training.saving.save_card", lambda *_: 1 / 0)
    trainer.save_model()
    assert "could not be written: ZeroDivisionError" in caplog.text
    assert (tmp_path / "raft_config.json").is_file()


def test_saved_weights_take_no_calibration_of_others(tiny_llama, tokenizer, tmp_path):
    trainer = make(tiny_llama, tokenizer, tmp_path)
    trainer.save_model()
    prompts, labels = [row["prompt"] for row in ROWS], [row["label"] for row in ROWS]
    RegressionPredictor.from_pretrained(tmp_path).calibrate(prompts, labels).save(tmp_path)
    assert RegressionPredictor.from_pretrained(tmp_path).calibration is not None
    QuestionCalibration({}, {}).save(tmp_path)
    trainer.save_model()
    found = RegressionPredictor.from_pretrained(tmp_path)
    assert found.calibration is found.question_calibration is None
