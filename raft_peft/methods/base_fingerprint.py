"""Which weights an adapter was trained on: a fingerprint of its base model, by which the base is known again.

The fingerprint is taken of the base model's files, so that it is the same however they are opened: dense or quantized,
in any dtype, on any device. A few slices of a few dozen tensors are read, the attention's and the MLP's of the first,
the middle and the last layer among them, in milliseconds also for a large model. Where a model in memory holds other
weights than the files of its name, its own are taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from peft import PeftModel, PeftType
from safetensors import SafetensorError, safe_open
from transformers.core_model_loading import WeightConverter
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from raft_peft.forward.model import base_model
from raft_peft.messages import warn
from raft_peft.methods.adapter_inits import rebuilt_layers
from raft_peft.methods.saved_folder import RaftConfig, find_file

logger = logging.getLogger(__name__)

# Of each tensor, so many slices of so many neighbouring elements are read, evenly spread.
_SLICES = 4
_ELEMENTS = 16
_MOST_TENSORS = 96
_DENSE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Where a tensor of a model in memory stands in a module that PEFT has wrapped.
_WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.)")


@dataclass(frozen=True)
class _Part:
    """Of a tensor in a file its shape, and a few slices."""

    shape: tuple[int, ...]
    slices: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, tensor: Any, shape: Sequence[int]) -> _Part:
        """A part of a tensor, or of a file's slice that stands for it."""
        return cls(tuple(shape), tuple(tensor[window] for window in _windows(shape)))


@dataclass(frozen=True)
class AdaptedBase:
    """The model that an adapter is trained on.

    Attributes:
        is_folder: whether its name is that of a folder; None where it has no name.
        fingerprint: a digest of each tensor that was looked at, by its name in the files; None where the model's name
            leads to no files.
    """

    is_folder: bool | None
    fingerprint: dict[str, str] | None


def note_base(model: Any, hub: Mapping[str, Any], *, just_opened: bool) -> None:
    """Note on a model, as `adapted_base`, which weights an adapter will be trained on; where changed, it is said.

    Args:
        model: before its adapter is trained, with or without it.
        hub: how the Hub was reached when the model was opened.
        just_opened: whether it holds what its files hold, and need not be compared with them.
    """
    name = model.config.name_or_path
    if isinstance(model, PeftModel):
        adapter = model.active_peft_config
        name, hub = adapter.base_model_name_or_path or name, {**hub, "revision": adapter.revision}
    files = _read_files(name, hub) if name else None
    if files is None:
        model.adapted_base = AdaptedBase(Path(name).is_dir() if name else None, None)
        return
    fingerprint = {tensor: _digest(part.slices) for tensor, part in files.items()}
    if not just_opened:
        changed = _changed_in_memory(model, files)
        fingerprint |= changed
        if changed:
            warn(
                logger,
                f"The model you pass is not what its name {name!r} holds: of {len(files)} tensors that were looked "
                f"at, {len(changed)} differ, such as {min(changed)}. It was trained, merged or changed in another way "
                f"after it was opened. An adapter that is trained on it cannot be opened on {name!r}. Save the "
                "changed model before training, with model.save_pretrained(folder), and open it from there.",
            )
    model.adapted_base = AdaptedBase(Path(name).is_dir(), fingerprint)


def check_untouched_by_adapter(model: Any) -> None:
    """Make sure that making the adapter has not changed the base model for good, after `note_base`.

    Raises:
        ValueError: it has, in a way that opening the saved adapter will not repeat.
    """
    base = getattr(model, "adapted_base", None)
    if base is None or base.fingerprint is None or not isinstance(model, PeftModel):
        return
    adapter = model.active_peft_config
    name = adapter.base_model_name_or_path or model.config.name_or_path
    files = _read_files(name, {"revision": adapter.revision}, list(base.fingerprint))
    changed = _changed_in_memory(model, files or {})
    new = [tensor for tensor, digest in changed.items() if digest != base.fingerprint[tensor]]
    if new:
        raise ValueError(
            f"Making the adapter, of the type {PeftType(adapter.peft_type).value}, changed the base model itself, "
            f"such as {min(new)}, and a saved adapter holds no trace of it: opened again, it would predict something "
            "else. Choose an initialization that leaves the base model as it is, such as init_lora_weights=True."
        )


def check_base(adapter: str, saved: RaftConfig | None, base: str, hub: Mapping[str, Any]) -> None:
    """Make sure that the base model of a saved adapter is the one that it was trained on.

    Args:
        adapter: the folder or repository of the adapter.
        saved: its `raft_config.json`; one without a fingerprint, of an earlier version, is not compared.
        base: the folder or repository of the base model, which has been opened.
        hub: how the Hub is reached, with the base model's `revision`.

    Raises:
        ValueError: the base model holds other weights.
    """
    if saved is None or saved.base_fingerprint is None:
        return
    files = _read_files(base, hub, list(saved.base_fingerprint))
    if not files:
        if files is None:
            cure = "" if Path(base).is_dir() else f" To compare them, run: hf download {base}"
            reason = f"its files are not on this machine, or cannot be read.{cure}"
        else:
            reason = "its files hold no tensors with the names of that time."
        warn(
            logger,
            f"Whether {base!r} holds the weights that the adapter in {adapter!r} was trained on is not known: "
            f"{reason}",
        )
        return
    now = {tensor: _digest(part.slices) for tensor, part in files.items()}
    other = differing(saved.base_fingerprint, now)
    if other:
        raise ValueError(
            f"The adapter in {adapter!r} was trained on other weights than its base model {base!r} holds: of "
            f"{len(now)} tensors that were looked at, {len(other)} differ, such as {min(other)}. Either {base!r} was "
            "changed since, or the adapter was trained on a model that had been changed after it was opened (merged, "
            "or trained). Restore the former weights; or name their folder, or the revision of the repository, in "
            "adapter_config.json (`base_model_name_or_path`, `revision`); or train again."
        )


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the tensors by which two fingerprints are those of different weights.

    A model that is stored quantized has other tensors of the same names than when it was not, which say nothing.
    """
    both = then.keys() & now.keys()
    return [name for name in both if _format(then[name]) == _format(now[name]) and then[name] != now[name]]


def _read_files(name: str, hub: Mapping[str, Any], tensors: list[str] | None = None) -> dict[str, _Part] | None:
    """Slices of the tensors in a model's files, by their names there; None where there are no such files.

    Args:
        name: the folder or repository. Of a repository, what has been downloaded is read.
        hub: how the Hub is reached.
        tensors: the names; None for some that tell models of the architecture apart. Others are left out.
    """
    find = _finder(name, hub)
    try:
        shards = _shards(find)
        if shards is None:
            return None
        wanted = _telling(shards) if tensors is None else [tensor for tensor in tensors if tensor in shards]
        by_file: dict[str, list[str]] = {}
        for tensor in wanted:
            by_file.setdefault(shards[tensor], []).append(tensor)
        read: dict[str, _Part] = {}
        for file, names in by_file.items():
            path = find(file)
            if path is not None:
                read |= _read_file(path, names)
        return {tensor: read[tensor] for tensor in wanted if tensor in read}
    # Files that cannot be read are the matter of those who open the model.
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        logger.info("The files of %r could not be read for a fingerprint: %r", name, error)
        return None


def _finder(name: str, hub: Mapping[str, Any]) -> Callable[[str], str | None]:
    # The model was opened just before, and the Hub need not be asked again.
    options = {**hub, "local_files_only": True}
    return lambda file: find_file(name, file, options) if PurePath(file).name == file else None


def _shards(find: Callable[[str], str | None]) -> dict[str, str] | None:
    """The file of each tensor."""
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        path = find(single)
        if path is not None:
            return dict.fromkeys(_names(path), single)
        path = find(index)
        if path is not None:
            return dict(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"])
    return None


def _names(path: str) -> list[str]:
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            return list(file.keys())
    return list(_mapped(path))


def _read_file(path: str, names: list[str]) -> dict[str, _Part]:
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in names}
            return {name: _Part.of(part, part.get_shape()) for name, part in parts.items()}
    tensors = _mapped(path)
    return {name: _Part.of(tensors[name], tensors[name].shape) for name in names}


def _mapped(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _telling(shards: Mapping[str, str]) -> list[str]:
    """The names of some tensors: those outside the layers, and of the first, the middle and the last layer all."""
    numbers: dict[str, set[int]] = {}
    parts = {tensor: re.split(r"(?<=\.)(\d+)(?=\.)", tensor) for tensor in shards}
    for split in parts.values():
        for place in range(1, len(split), 2):
            numbers.setdefault(_place(split, place), set()).add(int(split[place]))
    looked_at = {place: {min(all_), sorted(all_)[len(all_) // 2], max(all_)} for place, all_ in numbers.items()}
    chosen = sorted(
        tensor
        for tensor, split in parts.items()
        if all(int(split[place]) in looked_at[_place(split, place)] for place in range(1, len(split), 2))
    )
    return chosen[:: -(-len(chosen) // _MOST_TENSORS) or 1]


def _place(split: list[str], place: int) -> str:
    """What stands before a number in a tensor's name, with any other number for the numbers before it."""
    return "".join("*" if index % 2 else part for index, part in enumerate(split[:place]))


def _windows(shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """Where the slices of a tensor are, evenly spread from its beginning to its end."""
    if not shape or 0 in shape:
        return []
    *rows, columns = shape
    windows = []
    for part in range(_SLICES):
        starts = [(size - 1) * part // (_SLICES - 1) for size in rows]
        first = max(0, columns - _ELEMENTS) * part // (_SLICES - 1)
        windows.append((*(slice(start, start + 1) for start in starts), slice(first, first + _ELEMENTS)))
    return windows


def _digest(slices: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> str:
    """A digest of slices rounded to bf16, so that it is the same of float32 weights and of these saved in bf16.

    Args:
        slices: of one tensor.
        dtype: in which a model holds the tensor, where not as its file does.

    Returns:
        A hexadecimal number, behind the dtype where that is one of quantized weights.
    """
    digest = hashlib.sha256()
    packed = ""
    for part in slices:
        values = part.detach().cpu()
        if values.dtype in _DENSE:
            values = (values if dtype is None else values.to(dtype)).to(torch.bfloat16)
        else:
            packed = f"{values.dtype}:"
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return packed + digest.hexdigest()[:16]


def _format(digest: str) -> str:
    return digest.rpartition(":")[0]


def _changed_in_memory(model: Any, files: Mapping[str, _Part]) -> dict[str, str]:
    """The digests of those tensors that a model holds with other values than its files do.

    What cannot be compared is taken to be the same: tensors that are quantized, sharded over processes or not in
    memory, those that are not stored as the model holds them, and those that the adapter will change alike when it
    is opened again.
    """
    # FSDP may have the weights on one process alone at first.
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return {}
    base = base_model(model)
    held = {_WRAPPED.sub("", name): tensor for name, tensor in base.named_parameters()}
    prefix = f"{base.base_model_prefix}."
    converters = [one for one in getattr(base, "_weight_conversions", None) or () if isinstance(one, WeightConverter)]
    converted = [pattern for one in converters for pattern in (*one.source_patterns, *one.target_patterns)]
    rebuilt = rebuilt_layers(model)
    changed = {}
    for name, part in files.items():
        tensor = held.get(name, held.get(prefix + name))
        if tensor is None or not _is_plain(tensor) or any(re.search(pattern, name) for pattern in converted):
            continue
        if any(values.dtype not in _DENSE for values in part.slices):
            continue
        # A vocabulary may have grown since.
        if tensor.dim() != len(part.shape) or any(a < b for a, b in zip(tensor.shape, part.shape, strict=True)):
            continue
        if any(f".{name}".endswith(f".{layer}.weight") for layer in rebuilt):
            continue
        found = _digest([tensor[window] for window in _windows(part.shape)])
        if found != _digest(part.slices, tensor.dtype):
            changed[name] = found
    return changed


def _is_plain(tensor: torch.Tensor) -> bool:
    is_own = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return is_own and tensor.dtype in _DENSE and tensor.device.type != "meta"
