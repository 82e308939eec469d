"""A model on the Hub: what is uploaded while it is trained and behind it, and what is made of it by its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_byte_level, make_tiny_llama
from huggingface_hub import ModelCard
from support.hub_server import TOKEN, HubServer

WORKER = Path(__file__).parents[1] / "support" / "hub_worker.py"


@pytest.fixture(scope="module")
def hub():
    server = HubServer()
    with server.running():
        yield server


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """A function that runs the worker with the Hub in reach and nothing in the cache; what it found."""

    def start(action, *arguments, output, **environment):
        folder = tmp_path_factory.mktemp("home")
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        paths = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **settings, **environment}
        command = [sys.executable, str(WORKER), action, *map(str, arguments), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(output.read_text())

    return start


@pytest.fixture(scope="module")
def uploaded(run, hub, tmp_path_factory):
    """What the trainer predicted, whose model is `me/stars` now."""
    tokenizer = make_byte_level()
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("trained")
    make_tiny_llama(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    return run("upload", base, folder, output=folder / "found.json", HF_TOKEN=TOKEN)["predictions"]


def test_the_repository(uploaded, hub):
    files = hub.repositories["me/stars"]
    assert {"adapter_model.safetensors", "adapter_config.json", "raft_config.json", "tokenizer.json"} <= set(files)
    assert not any(TOKEN.encode() in content for content in files.values())
    assert "Training in progress, step 1" in hub.messages
    assert hub.messages[-1] == "Trained on six rows"


def test_the_card(uploaded, hub):
    files = hub.repositories["me/stars"]
    card = ModelCard(files["README.md"].decode())
    assert (card.data.library_name, card.data.base_model) == ("raft-peft", "me/base")
    (result, *_) = card.data.eval_results
    assert result.dataset_type == "me/reviews"
    assert 'RegressionPredictor.from_pretrained("me/stars")' in card.text
    assert all(f"({name})" in card.text for name in files if name.endswith(".png"))
    assert any(name.endswith(".png") for name in files)


def test_by_its_name(uploaded, run, tmp_path):
    found = run("download", output=tmp_path / "found.json")
    np.testing.assert_allclose(found["predictions"], uploaded, atol=1e-5)
    np.testing.assert_allclose(found["pipeline"], uploaded, atol=1e-5)
