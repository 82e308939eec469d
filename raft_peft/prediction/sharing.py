"""A saved model as a repository of the Hub: what goes along, what stays here, and which base it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from raft_peft.methods.base_fingerprint import check_base
from raft_peft.methods.saved_folder import (
    CALIBRATION_NAME,
    CARD_NAME,
    HEAD_FILE,
    PICTURE_NAMES,
    QUESTION_CALIBRATION_NAME,
    RAFT_CONFIG_NAME,
    RaftConfig,
    nearest_folder,
)
from raft_peft.prediction.cards import card_on_hub

# What a model is opened with, and its card. All else stays here: checkpoints, optimizer states, training_args.bin.
_SHARED = (
    RAFT_CONFIG_NAME,
    CALIBRATION_NAME,
    QUESTION_CALIBRATION_NAME,
    CARD_NAME,
    *PICTURE_NAMES,
    HEAD_FILE,
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    "adapter_model*.safetensors",
    "adapter_model*.bin",
    "model*.safetensors",
    "pytorch_model*.bin",
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_INDEX_NAME,
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Pushed:
    """What a push sends.

    Attributes:
        repository: the name on the Hub.
        url: where it is read there.
        sizes: the files by their paths, and their sizes in bytes.
        private: whether the repository is private, where it is created by this push.
    """

    repository: str
    url: str
    sizes: Mapping[str, int]
    private: bool


def push_to_hub(
    folder: str | Path,
    name: str,
    *,
    base_model: str | None = None,
    private: bool = True,
    dry_run: bool = False,
    token: str | None = None,
    message: str = "Upload with raft-peft",
) -> Pushed:
    """Upload a saved or merged model to the Hub, with its card, so that it is opened there by its name.

    ```python
    push_to_hub("stars-raft", "me/stars", dry_run=True).sizes  # what would go
    push_to_hub("stars-raft", "me/stars")
    ```

    Only what the model is opened with goes along: weights, tokenizer, `raft_config.json`, calibration and card. The
    folder stays as it is; in what is sent, the card's snippet names the repository.

    Args:
        folder: what `RegressionAwareTrainer.save_model` or `merge_and_save` wrote.
        name: of the repository, such as `me/stars`; it is created where there is none.
        base_model: the name on the Hub of the model under an adapter, where it was trained on a folder. Where it can
            be read here, in the cache or as a folder, its weights are compared with those of training.
        private: whether a repository that is created is private; one that exists stays as it is.
        dry_run: only say what would go; nothing is asked of the Hub.
        token: for the Hub; by default that of `hf auth login`.
        message: of the commit.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no model of ours; an adapter's base is a folder, and `base_model` does not name
            it on the Hub; or what it names holds other weights than in training.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}.{nearest_folder(str(folder))}")
    validate_repo_id(name)
    saved = RaftConfig.find(folder, {})
    if saved is None:
        raise ValueError(
            f"{str(folder)!r} has no {RAFT_CONFIG_NAME}. Pass a folder that RegressionAwareTrainer.save_model wrote."
        )
    base = _base_on_hub(folder, saved, base_model)
    shared = shared_files(folder)
    api = HfApi(token=token)
    repository = name if dry_run else _repository(api, name, private=private)
    changed = _changed_texts(folder, saved, repository, base)
    sizes = {
        path: len(changed[path].encode()) if path in changed else file.stat().st_size for path, file in shared.items()
    }
    if not dry_run:
        operations = [
            CommitOperationAdd(path, changed[path].encode() if path in changed else file)
            for path, file in shared.items()
        ]
        api.create_commit(repository, operations, commit_message=message)
    return Pushed(repository, f"{api.endpoint}/{repository}", sizes, private)


def shared_files(folder: Path) -> dict[str, Path]:
    """The files that a model is opened with, and its card, by their paths in the folder."""
    patterns = list(_SHARED)
    config = folder / CONFIG_NAME
    # The code of a model of its own kind, which its config names.
    if config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8")):
        patterns.append("*.py")
    found = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    return {name: found[name] for name in sorted(found) if found[name].is_file()}


def _base_on_hub(folder: Path, saved: RaftConfig, base_model: str | None) -> str | None:
    """The name on the Hub of the model that a model was trained from; None for a whole model of which it has none.

    Raises:
        ValueError: an adapter has none, or `base_model` names a folder or a model of other weights.
    """
    adapter = folder / ADAPTER_CONFIG_NAME
    found = saved.base_model
    if adapter.is_file():
        found = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") or found
    if base_model is not None:
        if _is_folder(base_model):
            raise ValueError(
                f"`base_model={base_model}` is a folder. Name the model on the Hub, such as `owner/name`."
            )
        check_base(str(folder), saved, base_model, {})
        return base_model
    if found is None or not (saved.base_is_folder or _is_folder(found)):
        return found
    if not adapter.is_file():
        return None
    raise ValueError(
        f"The adapter in {str(folder)!r} was trained on the folder {found!r}, which exists only here. Pass "
        "`base_model`, the name on the Hub of the model that this folder is a copy of; or share the merged model: "
        "`merge_and_save(folder, new_folder)`."
    )


def _is_folder(name: str) -> bool:
    return Path(name).is_dir() or PurePath(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def _repository(api: HfApi, name: str, *, private: bool) -> str:
    """The full name of the repository, which is created where there is none.

    Raises:
        ValueError: it is to be private, and is public already.
    """
    repository = api.create_repo(name, private=private, exist_ok=True).repo_id
    if private and api.repo_info(repository).private is False:
        raise ValueError(
            f"The repository {repository!r} is public already, so nothing was uploaded. Choose another name, or "
            "allow it with `private=False`."
        )
    return repository


def _changed_texts(folder: Path, saved: RaftConfig, repository: str, base: str | None) -> dict[str, str]:
    """The texts of the files that are sent otherwise than they lie in the folder, by their names."""
    config = replace(saved, base_model=base, base_is_folder=None if base is None else False)
    changed = {RAFT_CONFIG_NAME: config.text()}
    adapter, card = folder / ADAPTER_CONFIG_NAME, folder / CARD_NAME
    if adapter.is_file():
        settings = json.loads(adapter.read_text(encoding="utf-8"))
        changed[ADAPTER_CONFIG_NAME] = json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n"
    if card.is_file():
        changed[CARD_NAME] = card_on_hub(card.read_text(encoding="utf-8"), repository, base)
    return changed
