import json
import logging

import pytest
import torch
from peft import get_peft_model
from support.training import lora

from raft_peft.methods.saved_folder import CALIBRATION_NAME, HEAD_FILE, RAFT_CONFIG_NAME, RaftConfig
from raft_peft.methods.saving import (
    check_one_model,
    copy_beside_weights,
    refuse_folder_of_base,
    remove_leftovers,
    save_beside_weights,
)

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


def folder_of(tmp_path, *names):
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("head", [{}, {"weight": torch.ones(2)}])
def test_what_is_beside_weights_is_written_and_copied(tmp_path, head):
    config = RaftConfig(values=[1.0, 2.0], texts=["1", "2"])
    checkpoint, folder = tmp_path / "checkpoint-1", tmp_path / "out"
    for place in (checkpoint, folder):
        place.mkdir()
        # Of the weights and of the method that lay there before.
        (place / CALIBRATION_NAME).write_text("{}")
        (place / HEAD_FILE).write_text("{}")
    save_beside_weights(checkpoint, config, head)
    copy_beside_weights(checkpoint, folder)
    assert RaftConfig.load(folder / RAFT_CONFIG_NAME) == config
    for place in (checkpoint, folder):
        assert not (place / CALIBRATION_NAME).exists()
        assert (place / HEAD_FILE).exists() is bool(head)


@pytest.mark.parametrize(
    ("is_adapter", "before", "left"),
    [
        (True, {*ADAPTER, "model.safetensors", "config.json", "tokenizer.json"}, {*ADAPTER, "tokenizer.json"}),
        (True, {*ADAPTER, "model-00001-of-00002.safetensors", "model.safetensors.index.json"}, ADAPTER),
        (True, {*ADAPTER, "config.json"}, {*ADAPTER, "config.json"}),
        (False, {*ADAPTER, "model.safetensors", "config.json"}, {"model.safetensors", "config.json"}),
        (None, {*ADAPTER, "model.safetensors"}, {*ADAPTER, "model.safetensors"}),
    ],
)
def test_weights_of_an_earlier_save_are_removed_and_named(is_adapter, before, left, tmp_path, caplog):
    folder = folder_of(tmp_path, *before)
    with caplog.at_level(logging.WARNING, "raft_peft"):
        remove_leftovers(folder, is_adapter=is_adapter, has_head=False)
    assert names_in(folder) == set(left)
    for name in before - set(left):
        assert name in caplog.text


@pytest.mark.parametrize("whole", [True, False])
def test_of_shards_and_a_single_file_the_later_one_stays(whole, tmp_path):
    """Shards that are all there were saved over the file; a save of one file removes shards, but not their index."""
    shard, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    folder = folder_of(tmp_path, "model.safetensors", *([shard] if whole else []))
    (folder / index).write_text(json.dumps({"weight_map": {"weight": shard}}))
    remove_leftovers(folder, is_adapter=False, has_head=False)
    assert names_in(folder) == ({shard, index} if whole else {"model.safetensors"})


@pytest.mark.parametrize(
    ("adapter", "names", "words"),
    [
        (False, ADAPTER | {"model.safetensors"}, r"holds a whole model.*Remove these two"),
        (True, {"model.safetensors"}, r"should hold an adapter.*has no adapter_config.json.*save the model again"),
        (None, ADAPTER | {"model.safetensors"}, r"an adapter and a whole model.*does not say which"),
        (True, ADAPTER | {"model.safetensors"}, None),
        (None, ADAPTER, None),
        (False, {"model.safetensors"}, None),
    ],
)
def test_a_folder_of_two_models_is_refused(adapter, names, words, tmp_path):
    folder = folder_of(tmp_path, *names)
    saved = RaftConfig(values=[1.0], texts=["1"], adapter=adapter)
    if words is None:
        check_one_model(str(folder), {}, saved)
        return
    with pytest.raises(ValueError, match=words):
        check_one_model(str(folder), {}, saved)


def test_adapters_in_folders_below_are_named(tmp_path):
    (tmp_path / "stars").mkdir()
    (tmp_path / "stars" / "adapter_config.json").write_text("{}")
    saved = RaftConfig(values=[1.0], texts=["1"], adapter=True)
    with pytest.raises(ValueError, match="There are adapters in its folders stars"):
        check_one_model(str(tmp_path), {}, saved)


def test_an_adapter_is_not_saved_into_its_base(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_llama.name_or_path = str(tmp_path / "base")
    peft_config = lora()
    peft_config.base_model_name_or_path = str(tmp_path / "base")
    model = get_peft_model(tiny_llama, peft_config)
    with pytest.raises(ValueError, match="holds the base model of the adapter"):
        refuse_folder_of_base(tmp_path / "run" / ".." / "base", model)
    refuse_folder_of_base(tmp_path / "run", model)
    refuse_folder_of_base(tmp_path / "base", model.get_base_model())
