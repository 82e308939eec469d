"""Checkpoints on disk: whether one is whole, and whether there is room for the next."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from raft_peft.messages import warn

logger = logging.getLogger(__name__)

# torch and tokenizers have no exception of its own for a file that cannot be written, but say so in these words.
_CANNOT_WRITE = (
    r"PytorchStreamWriter|iostream|unexpected pos|cannot be opened|Parent directory .* does not exist|os error"
)
# These optimizers keep two numbers for each weight that is trained, and a checkpoint holds them too.
_WITH_ADAM_STATE = ("adamw_torch", "adamw_torch_fused")


def why_not_whole(checkpoint: str | Path) -> str | None:
    """Why training cannot go on from a checkpoint, such as one that was cut off while it was written; None if it can.

    `Trainer` writes `trainer_state.json` last, so what is missing or cut off is found by that file and by the
    containers of tensors, which say how long they are.
    """
    folder = Path(checkpoint)
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {TRAINER_STATE_NAME}"
    except ValueError:
        return f"its {TRAINER_STATE_NAME} is cut off"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except (OSError, SafetensorError):
                return f"its {path.name} is cut off"
        elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            return f"its {path.name} is cut off"
    return None


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The folder of the last checkpoint from which training can go on, or None; what is passed over is said."""
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if step is not None and path.is_dir():
            found.append((int(step[1]), path))
    for _, path in sorted(found, reverse=True):
        reason = why_not_whole(path)
        if reason is None:
            return str(path)
        warn(logger, f"The checkpoint {path} is skipped, since {reason}.")
    return None


def checkpoint_bytes(model: Any, optim: str, *, save_only_model: bool) -> int:
    """The bytes that a checkpoint takes at least: the weights saved, and what AdamW keeps of those trained."""
    is_adapter = hasattr(model, "peft_config")
    weights = [weight for weight in model.parameters() if weight.requires_grad or not is_adapter]
    trained = sum(weight.nbytes for weight in weights if weight.requires_grad)
    adam = 0 if save_only_model or optim not in _WITH_ADAM_STATE else 2
    return sum(weight.nbytes for weight in weights) + adam * trained


def check_output_folder(folder: str | Path, needed: int) -> None:
    """Make sure, before training, that its result can be written.

    Args:
        folder: where the checkpoints go. It is made where it is missing.
        needed: the bytes of a checkpoint.

    Raises:
        OSError: the folder cannot be written to, or its disk has too little room.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(
            f"Nothing can be written to the output folder {str(folder)!r}: {error.strerror or error}. Training has "
            "not begun. Set `output_dir` to a folder on a disk that can be written to."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"The output folder {str(folder)!r} has {free / 1e9:.2f} GB free, and a checkpoint takes "
            f"{needed / 1e9:.2f} GB. Training has not begun. Free space, set `output_dir` to another disk, or save "
            "less (`save_only_model`, `save_total_limit`)."
        )


@contextmanager
def named_where_it_fails(folder: str | Path) -> Iterator[None]:
    """Turn what a library raises when it cannot write into an OSError that names the folder and what is safe."""
    try:
        yield
    except Exception as error:
        of_the_disk = isinstance(error, OSError | SafetensorError) and not isinstance(error, HfHubHTTPError)
        if not of_the_disk and not re.search(_CANNOT_WRITE, str(error)):
            raise
        last = last_whole_checkpoint(Path(folder).parent) or last_whole_checkpoint(folder)
        safe = "There is no whole checkpoint yet." if last is None else f"The last whole checkpoint is {last}."
        raise OSError(
            f"{str(folder)!r} could not be written: {error}. {_free(folder)}Free space or repair the disk. {safe} "
            "Training continues from it with `trainer.train(resume_from_checkpoint=True)`."
        ) from error


def _free(folder: str | Path) -> str:
    try:
        return f"{shutil.disk_usage(Path(folder).parent).free / 1e9:.2f} GB are free on its disk. "
    except OSError:
        return ""
