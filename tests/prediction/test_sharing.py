"""What is uploaded of a saved model, and what is not."""

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from support.hub_server import TOKEN, HubServer

from raft_peft import push_to_hub
from raft_peft.cli import main
from raft_peft.methods.saved_folder import RaftConfig

CARD = """---
base_model: {base}
model_name: stars-raft
---

# stars-raft

predictor = RegressionPredictor.from_pretrained("stars-raft")
"""
PRIVATE = {
    "training_args.bin": "hf_token",
    "checkpoint-4/optimizer.pt": "x",
    "checkpoint-4/adapter_model.safetensors": "x",
    "runs/events": "x",
    "predictions.jsonl": "x",
    "predictions.jsonl.made_by.json": "x",
    "notes.py": "x",
    ".env": "x",
}


@pytest.fixture
def saved(tmp_path):
    """A function that makes the folder of an adapter on a base, beside what is nobody's business."""

    def make(base, **options):
        folder = tmp_path / "stars-raft"
        config = RaftConfig(values=[1.0, 2.0], texts=["1", "2"], base_model=base, adapter=True, **options)
        files = {
            "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}),
            "adapter_model.safetensors": "weights",
            "tokenizer.json": "{}",
            "README.md": CARD.format(base=base),
            "raft_config.json": config.text(),
            "question_calibration.json": "{}",
            **PRIVATE,
        }
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return folder

    return make


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the Hub: the repositories made, by whether they are private, and the files sent."""
    found = SimpleNamespace(made={}, sent={}, is_public=False)

    def create_repo(self, name, *, private, exist_ok):
        found.made[f"me/{name.split('/')[-1]}"] = private
        return SimpleNamespace(repo_id=f"me/{name.split('/')[-1]}")

    def create_commit(self, name, operations, *, commit_message):
        for one in operations:
            with one.as_file() as file:
                found.sent[one.path_in_repo] = file.read().decode()

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "repo_info", lambda self, name: SimpleNamespace(private=not found.is_public))
    return found


def test_only_what_the_model_is_opened_with_goes_along(saved, hub):
    folder = saved("google/gemma-2-2b")
    pushed = push_to_hub(folder, "stars")
    assert hub.made == {"me/stars": True}
    expected = {"README.md", "adapter_config.json", "adapter_model.safetensors", "raft_config.json", "tokenizer.json"}
    expected |= {"question_calibration.json"}
    assert set(hub.sent) == expected
    assert pushed.sizes == {name: len(text) for name, text in hub.sent.items()}
    assert (pushed.repository, pushed.url.rpartition(".")[2]) == ("me/stars", "co/me/stars")
    card = ModelCard(hub.sent["README.md"])
    assert card.data.base_model == "google/gemma-2-2b"
    assert 'from_pretrained("me/stars")' in card.text
    assert 'from_pretrained("stars-raft")' in (folder / "README.md").read_text()


def test_a_base_in_a_folder_is_named_on_the_hub_or_refused(saved, hub, tmp_path):
    (tmp_path / "base").mkdir()
    folder = saved(str(tmp_path / "base"), base_is_folder=True)
    with pytest.raises(ValueError, match=r"was trained on the folder .*/base', .*`base_model`.*merged model"):
        push_to_hub(folder, "me/stars")
    with pytest.raises(ValueError, match="is a folder"):
        push_to_hub(folder, "me/stars", base_model=str(tmp_path / "base"))
    assert hub.made == {}
    push_to_hub(folder, "me/stars", base_model="google/gemma-2-2b", private=False)
    assert hub.made == {"me/stars": False}
    assert not any(str(tmp_path) in text for text in hub.sent.values())
    assert json.loads(hub.sent["adapter_config.json"])["base_model_name_or_path"] == "google/gemma-2-2b"
    config = json.loads(hub.sent["raft_config.json"])
    assert (config["base_model"], config["base_is_folder"]) == ("google/gemma-2-2b", False)
    assert ModelCard(hub.sent["README.md"]).data.base_model == "google/gemma-2-2b"


def test_a_base_on_the_hub_of_other_weights_is_refused(saved, hub, monkeypatch):
    folder = saved("/base", base_is_folder=True, base_fingerprint={"a": "1"})
    monkeypatch.setattr("raft_peft.methods.base_fingerprint._read_files", lambda *_: {"a": SimpleNamespace(slices=())})
    with pytest.raises(ValueError, match=r"trained on other weights than its base model 'google/gemma-2-2b' holds"):
        push_to_hub(folder, "me/stars", base_model="google/gemma-2-2b")
    assert hub.made == {}


def test_a_whole_model_forgets_the_folder_it_was_trained_from(saved, hub, tmp_path):
    folder = saved(str(tmp_path / "base"), base_is_folder=True)
    (folder / "adapter_config.json").unlink()
    push_to_hub(folder, "me/stars")
    assert not any(str(tmp_path) in text for text in hub.sent.values())
    assert json.loads(hub.sent["raft_config.json"])["base_model"] is None


def test_what_is_public_is_not_taken_for_private(saved, hub):
    hub.is_public = True
    with pytest.raises(ValueError, match="is public already, so nothing was uploaded"):
        push_to_hub(saved("google/gemma-2-2b"), "me/stars")
    assert hub.sent == {}


def test_mistakes(saved, hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Is .*stars-raft' meant"):
        push_to_hub(str(saved("google/gemma-2-2b")) + "t", "me/stars")
    with pytest.raises(ValueError, match="Repo id"):
        push_to_hub(tmp_path / "stars-raft", "a/b/c")
    with pytest.raises(ValueError, match=r"has no raft_config.json"):
        push_to_hub(tmp_path, "me/stars")
    assert hub.made == {}


def test_command(saved, hub, capsys, tmp_path):
    folder = str(saved(str(tmp_path), base_is_folder=True))
    assert main(["push", folder, "me/stars"]) == 1
    message = capsys.readouterr().err
    assert "`--base-model`" in message
    assert "`raft-peft merge FOLDER NEW_FOLDER`" in message
    assert main(["push", folder, "me/stars", "--base-model", "google/gemma-2-2b", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "              7  adapter_model.safetensors\n" in listed
    assert "in 6 files\n" in listed
    assert listed.endswith("/me/stars (private). Nothing was uploaded.\n")
    assert hub.made == {}
    hub.is_public = True
    assert main(["push", folder, "me/stars", "--base-model", "google/gemma-2-2b"]) == 1
    assert "allow it with `--public`" in capsys.readouterr().err
    assert main(["push", folder, "me/stars", "--base-model", "google/gemma-2-2b", "--public"]) == 0
    assert hub.made == {"me/stars": False}


def test_over_http(saved, monkeypatch, capsys):
    server = HubServer()
    with server.running() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        folder = saved("google/gemma-2-2b")
        assert main(["push", str(folder), "me/stars", "--dry-run"]) == 0
        assert server.repositories == {}
        assert main(["push", str(folder), "me/stars"]) == 0
        assert f"The model is at {url}/me/stars." in capsys.readouterr().out
        assert main(["push", str(folder), "me/open", "--public"]) == 0
        assert main(["push", str(folder), "me/open"]) == 1
        assert "'me/open' is public already, so nothing was uploaded." in capsys.readouterr().err
    assert server.private == {"me/stars": True, "me/open": False}
    files = server.repositories["me/stars"]
    assert files["adapter_model.safetensors"] == b"weights"
    assert ModelCard(files["README.md"].decode()).data.base_model == "google/gemma-2-2b"
    assert not set(PRIVATE) & set(files)
    assert server.messages == ["Upload with raft-peft"] * 2
