"""`transformers.pipeline("text-regression")` gives the predictor's numbers."""

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from support.training import lora, make
from transformers import pipeline

from raft_peft import RegressionPredictor, TextRegressionPipeline

PROMPTS = [f"Rate item {index}, the score is" for index in range(9)]
ROWS = [{"prompt": prompt, "label": float(index % 5)} for index, prompt in enumerate(PROMPTS)]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


@pytest.fixture
def folder(tiny_llama, tokenizer, tmp_path):
    """An adapter on a base of its own folder, in bf16, so that what is saved matters."""
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = make(
        str(tmp_path / "base"), tokenizer, tmp_path / "adapter", ROWS, options={"max_steps": 2}, peft_config=lora()
    )
    trainer.train()
    trainer.save_model()
    return str(tmp_path / "adapter")


def numbers(answers):
    return [answer["prediction"] for answer in answers]


def test_a_saved_adapter(folder):
    predictor = RegressionPredictor.from_pretrained(folder)
    expected = predictor.predict(PROMPTS).tolist()
    scorer = pipeline("text-regression", model=folder)
    assert isinstance(scorer, TextRegressionPipeline)
    assert numbers(scorer(PROMPTS)) == pytest.approx(expected, abs=1e-5)
    assert scorer(PROMPTS[0])["prediction"] == pytest.approx(expected[0], abs=1e-5)
    for batch_size in (1, 4):
        stream = scorer((prompt for prompt in PROMPTS), batch_size=batch_size)
        assert numbers(stream) == pytest.approx(expected, abs=1e-5)
    assert numbers(scorer(ROWS)) == pytest.approx(expected, abs=1e-5)


def test_rows_of_whatever_holds_them(folder):
    scorer = pipeline("text-regression", model=folder)
    expected = pytest.approx(numbers(scorer(PROMPTS)), abs=1e-5)
    dataset = Dataset.from_list(ROWS)
    for holder in (pandas.DataFrame(ROWS), dataset["prompt"], tuple(PROMPTS), np.array(PROMPTS)):
        answers = scorer(holder)
        assert isinstance(answers, list)
        assert numbers(answers) == expected
    for dataset_of_a_kind in (dataset, dataset.with_format("torch"), dataset.to_iterable_dataset()):
        assert numbers(scorer(dataset_of_a_kind)) == expected
    assert scorer([]) == []


def test_the_distribution(folder):
    distribution = RegressionPredictor.from_pretrained(folder).predict_distribution(PROMPTS)
    scorer = pipeline("text-regression", model=folder, top_k=2)
    answer = scorer(PROMPTS[:3])[1]
    best = distribution.probs[1].topk(2)
    assert [one["probability"] for one in answer["distribution"]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [one["value"] for one in answer["distribution"]] == best.indices.tolist()
    assert [one["text"] for one in answer["distribution"]] == [str(index) for index in best.indices.tolist()]
    assert answer["mass"] == pytest.approx(distribution.mass[1].item(), abs=1e-5)
    assert len(scorer(PROMPTS[0], top_k=None)["distribution"]) == 5


def test_chats(folder):
    expected = RegressionPredictor.from_pretrained(folder).predict(CHATS).tolist()
    scorer = pipeline("text-regression", model=folder)
    assert numbers(scorer(CHATS)) == pytest.approx(expected, abs=1e-5)
    assert scorer(CHATS[0])["prediction"] == pytest.approx(expected[0], abs=1e-5)


def test_zero_shot_and_settings(folder, tmp_path, tiny_llama, tokenizer):
    base = str(tmp_path / "base")
    expected = RegressionPredictor.from_pretrained(base, {0: "0", 10: "9"}, decision="mode").predict(PROMPTS).tolist()
    for model in ({"model": base}, {"model": tiny_llama, "tokenizer": tokenizer}):
        scorer = pipeline("text-regression", **model, grid={0: "0", 10: "9"}, decision="mode")
        assert numbers(scorer(PROMPTS)) == pytest.approx(expected, abs=1e-5)
    assert pipeline("text-regression", model=base, grid=range(5), dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert pipeline("text-regression", model=base, grid=range(5), device=-1).model.device.type == "cpu"
    assert pipeline("text-regression", model=base, grid=range(5), device_map="cpu").model.device.type == "cpu"


def test_errors(folder, tmp_path, tiny_llama, tokenizer):
    with pytest.raises(ValueError, match="so its grid is not known"):
        pipeline("text-regression", model=str(tmp_path / "base"))
    with pytest.raises(ValueError, match="Pass its numbers, such as `grid="):
        pipeline("text-regression", model=tiny_llama, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="takes no 'beams'"):
        pipeline("text-regression", model=folder)(PROMPTS, beams=1)
    with pytest.raises(ValueError, match="Set `num_reasonings`, or leave them out"):
        pipeline("text-regression", model=folder)(PROMPTS, temperature=0.5)
    with pytest.raises(ValueError, match="does not carry a head that was trained"):
        pipeline("text-regression", model=tiny_llama, tokenizer=tokenizer, grid=range(5), method="special_token")
    options = {"method": "special_token", "max_steps": 1}
    make(tiny_llama, tokenizer, tmp_path / "head", ROWS, options=options).train()
    head = pipeline("text-regression", model=tiny_llama, tokenizer=tokenizer, grid=range(5), method="special_token")
    assert numbers(head(PROMPTS[:2])) == head.predictor.predict(PROMPTS[:2]).tolist()
    with pytest.raises(ValueError, match="no distribution"):
        head(PROMPTS[:2], top_k=2)
