"""What is saved beside weights; and the files of an earlier save: a folder holds one model, and says which."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME
from peft.utils import WEIGHTS_NAME as ADAPTER_BIN_NAME
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from raft_peft.messages import warn
from raft_peft.methods.saved_folder import (
    CALIBRATION_NAME,
    HEAD_FILE,
    QUESTION_CALIBRATION_NAME,
    RAFT_CONFIG_NAME,
    RaftConfig,
    find_file,
    save_head,
)

logger = logging.getLogger(__name__)

_OF_ADAPTERS = (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, ADAPTER_BIN_NAME)
_OF_WHOLE_MODELS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")


def save_beside_weights(folder: str | Path, config: RaftConfig, head: Mapping[str, torch.Tensor]) -> None:
    """Write what a folder of weights needs to predict by itself, and remove what is of an earlier save.

    Args:
        folder: the folder, with the weights.
        config: the contents of `raft_config.json`.
        head: the head's parameters; empty where it has none.
    """
    config.save(folder)
    if head:
        save_head(head, folder)
    give_usual_permissions(folder)
    remove_leftovers(folder, is_adapter=config.adapter, has_head=bool(head))


def copy_beside_weights(source: str | Path, folder: str | Path) -> None:
    """Copy what was written by `save_beside_weights` into another folder of the same weights."""
    for name in (RAFT_CONFIG_NAME, HEAD_FILE):
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(folder) / name)
    give_usual_permissions(folder)
    config = RaftConfig.load(Path(source) / RAFT_CONFIG_NAME)
    remove_leftovers(folder, is_adapter=config.adapter, has_head=(Path(source) / HEAD_FILE).is_file())


def give_usual_permissions(folder: str | Path) -> None:
    """Let those read the weights in a folder who may read its `raft_config.json`, which was written just before."""
    mode = (Path(folder) / RAFT_CONFIG_NAME).stat().st_mode
    # Safetensors writes into a temporary file and renames it, so that its owner alone may read it.
    for path in Path(folder).glob("*.safetensors"):
        # Some file systems know no permissions, and files of another user keep theirs.
        with suppress(PermissionError):
            path.chmod(mode)


def refuse_folder_of_base(folder: str | Path, model: Any) -> None:
    """Raise a ValueError where an adapter would be saved into the folder of its own base model."""
    if not isinstance(model, PeftModel):
        return
    for peft_config in model.peft_config.values():
        base = peft_config.base_model_name_or_path
        if base and Path(base).is_dir() and Path(base).resolve() == Path(folder).resolve():
            raise ValueError(
                f"The folder {str(folder)!r} holds the base model of the adapter, and with both in one folder it is "
                "not clear which of them to open. Choose another folder (`output_dir`, or that of `save_model`)."
            )


def remove_leftovers(folder: str | Path, *, is_adapter: bool | None, has_head: bool) -> None:
    """Remove the weights in a folder that are not those just saved there, and say so.

    Args:
        folder: where a model was saved.
        is_adapter: whether that was an adapter; False for a whole model, None where it is not known.
        has_head: whether a head was saved beside it.
    """
    # A calibration that lies there was fitted to the weights before these.
    for name in (CALIBRATION_NAME, QUESTION_CALIBRATION_NAME):
        (Path(folder) / name).unlink(missing_ok=True)
    stale = [] if has_head else [HEAD_FILE]
    if is_adapter:
        whole = [path.name for path in Path(folder).iterdir() if _is_of_whole_model(path.name)]
        stale += [*whole, CONFIG_NAME, GENERATION_CONFIG_NAME] if whole else []
    elif is_adapter is False:
        stale += _OF_ADAPTERS
        # Shards do not replace a single file, which is the one that would be opened; nor does it replace their index.
        index = Path(folder) / SAFE_WEIGHTS_INDEX_NAME
        if index.is_file() and (Path(folder) / SAFE_WEIGHTS_NAME).is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            is_whole = all((Path(folder) / shard).is_file() for shard in shards)
            stale.append(SAFE_WEIGHTS_NAME if is_whole else SAFE_WEIGHTS_INDEX_NAME)
    removed = []
    for name in stale:
        path = Path(folder) / name
        if path.is_file():
            path.unlink()
            removed.append(name)
    if removed:
        kind = "an adapter" if is_adapter else "a whole model"
        warn(
            logger,
            f"{', '.join(sorted(removed))} in {str(folder)!r} belonged to a model that was saved there before. They "
            f"were removed, since the folder now holds {kind} that they contradict.",
        )


def check_one_model(name: str, hub: Mapping[str, Any], saved: RaftConfig | None) -> None:
    """Make sure that it can be told which weights a folder or Hub repository is to be opened with.

    Args:
        name: the folder or repository.
        hub: how the Hub is reached.
        saved: its `raft_config.json`; None where it has none.

    Raises:
        ValueError: there are weights of two models, or none that its `raft_config.json` speaks of.
    """
    if saved is None:
        return
    has_adapter = find_file(name, ADAPTER_CONFIG_NAME, hub) is not None
    if saved.adapter and not has_adapter:
        below = sorted(path.parent.name for path in Path(name).glob(f"*/{ADAPTER_CONFIG_NAME}"))
        where = f" There are adapters in its folders {', '.join(below)}." if below else ""
        raise ValueError(
            f"{name!r} should hold an adapter, by its {RAFT_CONFIG_NAME}, and has no {ADAPTER_CONFIG_NAME}.{where} "
            "Copy or download the folder again, or save the model again with `trainer.save_model(folder)`."
        )
    if not has_adapter:
        return
    if saved.adapter is False:
        raise ValueError(
            f"{name!r} holds a whole model, by its {RAFT_CONFIG_NAME}, and an adapter of another save: the files "
            f"{ADAPTER_CONFIG_NAME} and {ADAPTER_WEIGHTS_NAME}. Remove these two, or save the model into a new folder."
        )
    if saved.adapter is None and any(find_file(name, weights, hub) for weights in _OF_WHOLE_MODELS[:2]):
        raise ValueError(
            f"{name!r} holds an adapter and a whole model, and its {RAFT_CONFIG_NAME} does not say which it belongs "
            f"to. Remove the files of one: {ADAPTER_CONFIG_NAME} and {ADAPTER_WEIGHTS_NAME}, or {SAFE_WEIGHTS_NAME}."
        )


def _is_of_whole_model(name: str) -> bool:
    return name in _OF_WHOLE_MODELS or _SHARD.fullmatch(name) is not None
