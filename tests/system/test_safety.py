"""Folders from strangers: nothing in them is run, nothing leads out of them; and what is saved holds no secret."""

import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import make_byte_level, make_tiny_llama
from support.training import lora, make

from raft_peft import RegressionPredictor
from raft_peft.methods.pretrained import check_shards

SECRET = "hf_doNotWriteThisDownAnywhere"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a base model and a run."""
    folder, tokenizer = tmp_path_factory.mktemp("trained"), make_byte_level()
    make_tiny_llama(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"Rate item {index} from 0 to 4, the score is", "label": 0.5 * index} for index in range(8)]
    options = {"max_steps": 2, "method": "logits_mlp", "save_strategy": "steps", "save_steps": 2}
    trainer = make(str(folder / "base"), tokenizer, folder / "out", rows, options=options, peft_config=lora())
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run beside a copy of its base model, which a test may change."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "out").rglob("*.json"):
        path.write_text(path.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path / "out"


def bombed(path, tmp_path, *, zipped):
    bomb = {"weight": Bomb(tmp_path / "exploded")}
    if zipped:
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["adapter_model", "training_args", "regression_head", "optimizer", "rng_state"])
def test_nothing_of_a_folder_is_unpickled(name, zipped, folder, tmp_path):
    """By prediction: whatever lies in the folder, and also where it stands in for the weights."""
    for suffix in (".bin", ".pt", ".pth"):
        bombed(folder / f"{name}{suffix}", tmp_path, zipped=zipped)
    (folder / f"{name}.safetensors").unlink(missing_ok=True)
    try:
        RegressionPredictor.from_pretrained(folder)
    except (ValueError, pickle.UnpicklingError, RuntimeError, OSError):
        assert name in ("adapter_model", "regression_head")
    assert not (tmp_path / "exploded").exists()


def test_nothing_of_a_base_model_is_unpickled(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    bombed(tmp_path / "base" / "pytorch_model.bin", tmp_path, zipped=True)
    with pytest.raises(Exception, match=r"(?i)weights.only|unpickl|safetensors"):
        RegressionPredictor.from_pretrained(tmp_path / "base", grid=range(5))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_nothing_of_a_checkpoint_is_unpickled(name, folder, tokenizer, tmp_path, rows):
    bombed(folder / "checkpoint-2" / name, tmp_path, zipped=True)
    options = {"max_steps": 4, "method": "logits_mlp"}
    trainer = make(str(tmp_path / "base"), tokenizer, folder, rows, options=options, peft_config=lora())
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trainer.train(resume_from_checkpoint=True)
    assert not (tmp_path / "exploded").exists()


def test_code_of_a_model_is_not_run_unless_asked(folder, tmp_path):
    """Neither where a config of the base model names it, nor where the saved configs claim that it was asked for."""
    base = tmp_path / "base"
    (base / "bomb.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass Bomb: pass\n")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "bomb.Bomb", "AutoModelForCausalLM": "bomb.Bomb"}, "model_type": "bomb"}
    (base / "config.json").write_text(json.dumps({**config, "trust_remote_code": True}))
    raft = json.loads((folder / "raft_config.json").read_text())
    with pytest.raises(ValueError, match="trust_remote_code"):
        RegressionPredictor.from_pretrained(folder)
    (folder / "raft_config.json").write_text(json.dumps({**raft, "trust_remote_code": True}))
    with pytest.raises(ValueError, match=r"not a usable RAFT configuration.*trust_remote_code"):
        RegressionPredictor.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "shard", ["../../outside.safetensors", "/etc/outside.safetensors", "a/../../b.safetensors", 1]
)
def test_weights_outside_of_the_folder_are_refused(shard, folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": shard}}))
    with pytest.raises(ValueError, match="outside its folder"):
        RegressionPredictor.from_pretrained(folder)


def test_a_list_of_weights_inside_the_folder(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    check_shards(folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match="not a list of weights"):
        check_shards(folder)


def contents(path):
    """A file's bytes, and those of the files within it where it is a container."""
    data = path.read_bytes()
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(path) as container:
            data += b"".join(container.read(name) for name in container.namelist())
    return data


def test_a_token_of_the_hub_is_written_nowhere(tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.save_pretrained(tmp_path / "base")
    options = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "hub_token": SECRET,
        "model_init_kwargs": {"token": SECRET},
    }
    trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "out", rows, options=options, peft_config=lora())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"training_args.bin", "raft_config.json", "README.md", "adapter_config.json"} <= {
        path.name for path in files
    }
    assert [path.name for path in files if re.search(SECRET.encode(), contents(path))] == []
    assert trainer.args.hub_token == SECRET
    assert trainer.args.model_init_kwargs["token"] == SECRET


def test_a_token_is_not_pushed_with_a_checkpoint(tiny_llama, tokenizer, tmp_path, rows, monkeypatch):
    """`Trainer` writes its arguments once more before it uploads the folder, and uploads with the token."""
    uploads = []

    class Hub:
        def upload_folder(self, folder_path, token, **_):
            files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
            assert "training_args.bin" in {path.name for path in files}
            uploads.append((token, [path.name for path in files if re.search(SECRET.encode(), contents(path))]))

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    options = {"max_steps": 1, "hub_token": SECRET, "model_init_kwargs": {"token": SECRET}, "hub_model_id": "me/stars"}
    tiny_llama.save_pretrained(tmp_path / "base")
    trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "out", rows, options=options, peft_config=lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "out" / "checkpoint-1"))
    trainer.push_in_progress = None
    trainer.hub_model_id = "me/stars"
    trainer._push_from_checkpoint(str(tmp_path / "out" / "checkpoint-1"))
    assert uploads == [(SECRET, [])]
