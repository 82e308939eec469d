import logging

import pytest
from datasets import Dataset
from peft import LoraConfig
from support.training import GRID, lora, make

POOLED = {"method": "pooled"}
LEARNED = {"method": "learnable_raft"}


def resumed(folder, tokenizer, rows, first, second, *, grid=GRID, more_rows=None, **arguments):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    base = str(folder / "base")
    run = folder / "run"
    make(base, tokenizer, run, rows, peft_config=lora(), options={**options, **first}).train()
    arguments = {"peft_config": lora(), **arguments}
    again = make(
        base, tokenizer, run, more_rows or rows, grid=grid, options={**options, "max_steps": 3, **second}, **arguments
    )
    again.train(resume_from_checkpoint=True)
    return again


@pytest.fixture
def folder(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path


@pytest.mark.parametrize(
    ("first", "second", "arguments", "words"),
    [
        ({}, {}, {"grid": [0, 2, 4]}, r"grid \[0, 1, 2, 3, 4\] and not \[0, 2, 4\]"),
        (POOLED, {**POOLED, "pooling": "max"}, {}, "pooling 'mean' and not 'max'"),
        (POOLED, {}, {}, "method 'pooled' and not 'raft'"),
        ({}, POOLED, {}, "method 'raft' and not 'pooled'"),
        (LEARNED, LEARNED, {"grid": {10.0 * value: str(value) for value in GRID}}, "trained for the grid"),
        ({}, {}, {"peft_config": LoraConfig(r=8, target_modules=["q_proj"])}, "adapter is another one, whose r was 4"),
        ({}, {}, {"peft_config": None}, "it holds an adapter, and the run trains a whole model"),
    ],
)
def test_another_grid_or_head_is_refused(first, second, arguments, words, folder, tokenizer, rows):
    with pytest.raises(ValueError, match=rf"cannot go on from .*checkpoint-2.*{words}.*start a new run"):
        resumed(folder, tokenizer, rows, first, second, **arguments)


@pytest.mark.parametrize(
    ("second", "more", "words"),
    [
        ({"method": "mbr"}, 0, "method was 'raft' and is 'mbr'"),
        ({"renormalize": True}, 0, "renormalize was False and is True"),
        ({"separator": ": "}, 0, "separator was None and is ': '"),
        ({}, 3, "train_rows was 8 and is 11"),
        ({}, 0, None),
    ],
)
def test_other_settings_are_said(second, more, words, folder, tokenizer, rows, caplog):
    with caplog.at_level(logging.WARNING, "raft_peft"):
        again = resumed(folder, tokenizer, rows, {}, second, more_rows=rows + rows[:more])
    assert again.state.global_step == 3
    said = [record.getMessage() for record in caplog.records if "was written by a run" in record.getMessage()]
    assert len(said) == (words is not None)
    if words is not None:
        assert words in said[0]
        assert said[0].count(" was ") == 2  # "was written by", and the one setting


def test_another_scale_of_the_adapter_is_said(folder, tokenizer, rows, caplog):
    with caplog.at_level(logging.WARNING, "raft_peft"):
        resumed(folder, tokenizer, rows, {}, {}, peft_config=lora(lora_alpha=64))
    assert "lora_alpha was 8 and is 64" in caplog.text


def test_a_checkpoint_of_another_trainer_is_not_compared(folder, tokenizer, rows):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make(str(folder / "base"), tokenizer, folder / "run", rows, peft_config=lora(), options=options).train()
    (folder / "run" / "checkpoint-2" / "raft_config.json").unlink()
    again = make(
        str(folder / "base"), tokenizer, folder / "run", rows, peft_config=lora(), options={**options, "max_steps": 3}
    )
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert again.predict(Dataset.from_list(rows)).predictions.shape == (8,)
