"""Whose head it is: made new, carried by a model, or of a folder; and the settings that its parameters belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from raft_peft.grid import NumberGrid
from raft_peft.heads import Head, HeadSetup
from raft_peft.methods.saved_folder import HEAD_NAME, head_and_rest
from raft_peft.methods.table import METHODS, MethodSettings

# A head of the same shapes means something else under another value of these.
_OF_HEADS = ("weights", "special_token", "mlp_width", "pooling")


def head_origin(
    settings: MethodSettings, grid: NumberGrid, tokenizer: Any, *, own_head: str | None = None
) -> dict[str, Any]:
    """What the parameters of a head belong to: they are those of another head where any of it differs.

    Args:
        settings: the method and its options.
        grid: the numbers that the model answers with.
        tokenizer: of the model.
        own_head: the class of a head that is not the method's own; None for the method's own.
    """
    origin: dict[str, Any] = {"grid": [[float(value), text] for value, text in grid]}
    if own_head is not None:
        return {"head": own_head, **origin}
    for name in _OF_HEADS:
        if name in METHODS[settings.method].takes:
            origin[name] = getattr(settings, name)
    # The default is resolved, so that it is the same as its name.
    if "special_token" in origin:
        origin["special_token"] = origin["special_token"] or tokenizer.eos_token
    return {"method": settings.method, **origin}


def own_head_of(head: Head | None) -> str | None:
    """The name of a head that is not the method's own, as `raft_config.json` holds it."""
    return None if head is None else type(head).__qualname__


def origin_difference(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What differs between two origins, in words; None where nothing does."""
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} {_shown(then.get(name))} and not {_shown(now.get(name))}" for name in changed) or None


def new_head(
    model: Any,
    tokenizer: Any,
    grid: NumberGrid,
    settings: MethodSettings,
    grid_token_ids: tuple[tuple[int, ...], ...] | None,
) -> Head:
    """The method's own head as it starts, for arguments as those of [`Readout`].

    Raises:
        ValueError: the head cannot be made for this grid or tokenizer.
    """
    setup = HeadSetup(
        values=grid.values,
        grid_token_ids=grid_token_ids,
        vocab_size=model.config.get_text_config().vocab_size,
        hidden_size=model.config.get_text_config().hidden_size,
    )
    head = METHODS[settings.method].head(settings, setup, tokenizer)
    head.origin = head_origin(settings, grid, tokenizer)
    head.is_new = True
    return head


def has_parameters(head: Head) -> bool:
    """Whether a head has any, of its own or of a module in it."""
    return any(True for _ in head.parameters())


def load_parameters(head: Head, path: str | Path, method: str) -> None:
    """Read a head's parameters from a file.

    Raises:
        ValueError: the file does not fit the head.
    """
    try:
        head.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} does not fit the head of method {method!r}, {type(head).__name__}: {error}"
        ) from error
    head.is_new = False


def carried_head(model: Any, origin: Mapping[str, Any]) -> Head | None:
    """The head that the model carries from its trainer, where its settings and its grid are these."""
    found = getattr(model, HEAD_NAME, None)
    return found if isinstance(found, Head) and has_parameters(found) and found.origin == origin else None


def state_to_save(
    model: Any, head: Head, state_dict: Mapping[str, torch.Tensor] | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """The parameters of a trainer's head, and the state of its model without any head.

    Args:
        model: the model, which may carry the head of another.
        head: the trainer's own.
        state_dict: the model's state, which is whole where the model itself is in shards; None for the model's own.

    Returns:
        The head's parameters by their names in it, empty where it has none; and the rest of the state, None where the
        model's own holds no head.
    """
    if state_dict is None:
        rest = head_and_rest(model.state_dict())[1] if hasattr(model, HEAD_NAME) else None
        return head.state_dict() if has_parameters(head) else {}, rest
    parameters, rest = head_and_rest(state_dict)
    return parameters if has_parameters(head) else {}, rest


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return repr(value)
    texts = [text for _, text in value]
    return f"[{', '.join(texts if len(texts) <= 6 else [*texts[:3], '...', *texts[-2:]])}]"
