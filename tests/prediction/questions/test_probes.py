"""A folder of typed questions, merged: it answers as its adapter does."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_tiny_llama
from datasets import Dataset
from huggingface_hub import ModelCard
from support.questions import QUESTIONS, question_rows
from support.training import config, lora
from transformers import AutoTokenizer

from raft_peft import RegressionAwareTrainer, RegressionPredictor, merge_and_save
from raft_peft.prediction.questions.probes import question_probes

TEMPLATE = {"replies": {"score": "Level:"}}


@pytest.fixture(scope="module")
def adapter(smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merging")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    make_tiny_llama(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{name: json.dumps(value) for name, value in row.items()} for row in question_rows(4)]
    trainer = RegressionAwareTrainer(
        str(folder / "base"),
        config(folder / "adapter", max_steps=4, learning_rate=0.05, question_template=TEMPLATE),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora(),
    )
    trainer.train()
    trainer.save_model()
    return folder / "adapter"


def probabilities(folder, questions=None):
    answers = RegressionPredictor.from_pretrained(folder).decide("It is late.", questions)
    return {name: list(answer.probabilities.values()) for name, answer in answers.items()}


def test_answers_the_same(adapter, tmp_path):
    predictor = RegressionPredictor.from_pretrained(adapter)
    predictor.calibrate_questions(question_rows(8)).save(adapter)
    expected = probabilities(adapter)
    before = probabilities(adapter.parent / "base", QUESTIONS)
    assert max(np.abs(np.array(expected[name]) - before[name]).max() for name in QUESTIONS) > 0.01
    merged = tmp_path / "merged"
    moved, tolerance, _ = merge_and_save(adapter, merged)
    assert moved < 1e-5
    assert tolerance == pytest.approx(1e-3)
    found = probabilities(merged)
    assert found.keys() == QUESTIONS.keys()
    for name, probs in found.items():
        np.testing.assert_allclose(probs, expected[name], atol=1e-5)
    limits = [RegressionPredictor.from_pretrained(one).decide("Late.", interval=0.5) for one in (adapter, merged)]
    assert limits[0]["anger"].low == pytest.approx(limits[1]["anger"].low, abs=1e-5)
    assert limits[0]["kind"].options == limits[1]["kind"].options
    saved, config_of_adapter = (json.loads((folder / "raft_config.json").read_text()) for folder in (merged, adapter))
    for name in ("questions", "question_template"):
        assert saved[name] == config_of_adapter[name]
    assert saved["adapter"] is False
    assert not (merged / "adapter_config.json").exists()
    card = ModelCard.load(merged / "README.md").text
    assert "The adapter adapter, merged into its base model." in card
    assert "anger (score), spam (predicate), kind (choice), price (number)" in card
    assert 'RegressionPredictor.from_pretrained("merged")' in card


def test_where_questions_differed_from_row_to_row(adapter, tmp_path):
    """None are saved, and a few are made up, or those of the user are asked."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    saved = json.loads((folder / "raft_config.json").read_text())
    (folder / "raft_config.json").write_text(json.dumps({**saved, "questions": None}))
    assert merge_and_save(folder, tmp_path / "merged").moved < 1e-5
    with pytest.raises(ValueError, match=r"Probabilities of options of the merged .* Nothing was kept"):
        rows = [{"state": "Late.", "questions": QUESTIONS}]
        merge_and_save(folder, tmp_path / "bf16", dtype="bfloat16", prompts=rows, tolerance=1e-9)
    assert not (tmp_path / "bf16").exists()


def test_rows_to_compare_on():
    (row,) = question_probes(["Late."], QUESTIONS)
    assert (row.state, [one.id for one in row.questions]) == ("Late.", list(QUESTIONS))
    (row,) = question_probes(["Late."], QUESTIONS, [{"state": "Early.", "questions": {"spam": QUESTIONS["spam"]}}])
    assert (row.state, [one.id for one in row.questions]) == ("Early.", ["spam"])
    assert {one.type for one in question_probes(["Late."], None)[0].questions} == {"score", "predicate", "choice"}
    (row,) = question_probes(["Late."], QUESTIONS, Dataset.from_list([{"state": "Early."}]))
    assert (row.state, [one.id for one in row.questions]) == ("Early.", list(QUESTIONS))
    with pytest.raises(ValueError, match=r"Row 0 of `prompts` is 'Early.', and the folder was trained on typed"):
        question_probes(["Late."], None, ["Early."])
