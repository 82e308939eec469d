import json
import logging
import shutil

import pytest
from conftest import make_byte_level, make_tiny_llama
from datasets import Dataset
from peft import LoraConfig
from support.training import GRID, lora, make

POOLED = {"method": "pooled"}
LEARNED = {"method": "learnable_raft"}


OPTIONS = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
ROWS = [{"prompt": f"Rate item {index} from 0 to 4, the score is", "label": 0.5 * index} for index in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("base"), make_byte_level()
    make_tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A function that gives the folder of a run of two steps, trained once for its settings."""
    folders = {}

    def of(settings):
        key = str(settings)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("trained")
            options = {**OPTIONS, **settings}
            make(base, make_byte_level(), folders[key], ROWS, peft_config=lora(), options=options).train()
        return folders[key]

    return of


@pytest.fixture
def resumed(base, trained, tokenizer, tmp_path):
    """A function that goes on with a copy of a run, under other settings."""

    def resume(first, second, *, grid=GRID, rows=ROWS, **arguments):
        run = shutil.copytree(trained(first), tmp_path / "run")
        arguments = {"peft_config": lora(), **arguments}
        options = {**OPTIONS, "max_steps": 3, **second}
        again = make(base, tokenizer, run, rows, grid=grid, options=options, **arguments)
        again.train(resume_from_checkpoint=True)
        return again

    return resume


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
def test_another_grid_or_head_is_refused(first, second, arguments, words, resumed):
    with pytest.raises(ValueError, match=rf"cannot go on from .*checkpoint-2.*{words}.*start a new run"):
        resumed(first, second, **arguments)


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
def test_other_settings_are_said(second, more, words, resumed, caplog):
    with caplog.at_level(logging.WARNING, "raft_peft"):
        again = resumed({}, second, rows=ROWS + ROWS[:more])
    assert again.state.global_step == 3
    said = [record.getMessage() for record in caplog.records if "was written by a run" in record.getMessage()]
    assert len(said) == (words is not None)
    if words is not None:
        assert words in said[0]
        assert said[0].count(" was ") == 2  # "was written by", and the one setting


def test_another_scale_of_the_adapter_is_said(resumed, caplog):
    with caplog.at_level(logging.WARNING, "raft_peft"):
        resumed({}, {}, peft_config=lora(lora_alpha=64))
    assert "lora_alpha was 8 and is 64" in caplog.text


def test_a_checkpoint_of_another_trainer_is_not_compared(base, trained, tokenizer, tmp_path):
    run = shutil.copytree(trained({}), tmp_path / "run")
    (run / "checkpoint-2" / "raft_config.json").unlink()
    options = {**OPTIONS, "max_steps": 3}
    again = make(base, tokenizer, run, ROWS, peft_config=lora(), options=options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert again.predict(Dataset.from_list(ROWS)).predictions.shape == (8,)


def test_a_checkpoint_of_typed_questions_is_refused_for_numbers(base, trained, tokenizer, tmp_path):
    run = shutil.copytree(trained({}), tmp_path / "run")
    path = run / "checkpoint-2" / "raft_config.json"
    no_grid = {"values": [], "texts": [], "token_ids": None, "token_texts": None}
    path.write_text(json.dumps({**json.loads(path.read_text()), **no_grid, "question_template": "vllm"}))
    again = make(base, tokenizer, run, ROWS, peft_config=lora(), options={**OPTIONS, "max_steps": 3})
    with pytest.raises(
        ValueError, match="it was trained on rows of typed questions, and the run trains on rows of one"
    ):
        again.train(resume_from_checkpoint=True)
