"""Going on from a checkpoint: whether it was written by a run of these settings."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME

from raft_peft.heads import Head
from raft_peft.messages import warn
from raft_peft.methods.base_fingerprint import differing
from raft_peft.methods.head_origin import has_parameters, head_origin, origin_difference
from raft_peft.methods.saved_folder import HEAD_FILE, RAFT_CONFIG_NAME, RaftConfig
from raft_peft.methods.table import MethodSettings

logger = logging.getLogger(__name__)

# Besides the settings of the method, those under which the loss would be another one of the same weights.
_COMPARED = (
    *(setting.name for setting in fields(MethodSettings)),
    "separator",
    "max_length",
    "dtype",
    "autocast",
    "attn_implementation",
    "train_rows",
    "question_template",
    "score_prefix",
)
# Those of an adapter's settings which say what its weights are, and those by which the same weights act otherwise.
_OF_SHAPES = ("peft_type", "r", "target_modules")
_OF_ADAPTERS = (*_OF_SHAPES, "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")


def check_resumed(checkpoint: str, now: RaftConfig, head: Head, tokenizer: Any, model: Any) -> None:
    """Compare a run with the one that wrote the checkpoint from which it goes on; what differs is said.

    Args:
        checkpoint: the folder; one without a `raft_config.json` is not compared.
        now: what the run would write into its own.
        head: the head of the run.
        tokenizer: the model's.
        model: the model of the run.

    Raises:
        ValueError: the grid or the base model is another one, or one of both runs asks typed questions; the head is
            another one, where either has parameters; an adapter is to go on from a whole model, or the other way
            round; or it is of another kind or other shapes.
    """
    path = Path(checkpoint) / RAFT_CONFIG_NAME
    if not path.is_file():
        return
    then = RaftConfig.load(path)
    start = f"Training cannot go on from {checkpoint!r}: "
    cure = "Set it as it was, or start a new run with another `output_dir`."
    if then.asks_questions != now.asks_questions:
        kinds = {True: "rows of typed questions", False: "rows of one number"}
        raise ValueError(
            f"{start}it was trained on {kinds[then.asks_questions]}, and the run trains on "
            f"{kinds[now.asks_questions]}. Start a new run with another `output_dir`."
        )
    if not now.asks_questions and list(then.grid) != list(now.grid):
        difference = origin_difference({"grid": _pairs(then)}, {"grid": _pairs(now)})
        raise ValueError(f"{start}it was trained for the {difference}. {cure}")
    if then.adapter is not None and then.adapter != now.adapter:
        kinds = {True: "an adapter", False: "a whole model"}
        raise ValueError(
            f"{start}it holds {kinds[then.adapter]}, and the run trains {kinds[bool(now.adapter)]}. {cure}"
        )
    other = differing(then.base_fingerprint or {}, now.base_fingerprint or {})
    if other:
        raise ValueError(
            f"{start}its adapter was trained on other weights than the base model {now.base_model!r} holds, by "
            f"{min(other)} and {len(other) - 1} other tensors. Restore the former base model, or start a new run with "
            "another `output_dir`."
        )
    if has_parameters(head) or (Path(checkpoint) / HEAD_FILE).is_file():
        origin = head_origin(then, then.grid, tokenizer, own_head=then.head)
        difference = origin_difference(origin, head_origin(now, now.grid, tokenizer, own_head=now.head))
        if difference is not None:
            raise ValueError(f"{start}its head was trained for {difference}. {cure}")
    changed = [
        f"{name} was {getattr(then, name)!r} and is {getattr(now, name)!r}"
        for name in _COMPARED
        if getattr(then, name) != getattr(now, name) and not (name == "train_rows" and then.train_rows is None)
    ]
    of_adapter = _changed_adapter(checkpoint, model)
    other_shapes = [words for name, words in of_adapter.items() if name in _OF_SHAPES]
    if other_shapes:
        raise ValueError(f"{start}its adapter is another one, whose {', '.join(other_shapes)}. {cure}")
    changed += of_adapter.values()
    if changed:
        warn(
            logger,
            f"The checkpoint {checkpoint} was written by a run with other settings: {', '.join(changed)}. Training "
            "continues from its weights and its step, with the settings of this run.",
        )


def _changed_adapter(checkpoint: str, model: Any) -> dict[str, str]:
    """What differs between the adapter of a checkpoint and that of the run, in words, by the setting's name."""
    path = Path(checkpoint) / ADAPTER_CONFIG_NAME
    if not path.is_file() or not isinstance(model, PeftModel):
        return {}
    then, now = json.loads(path.read_text(encoding="utf-8")), model.active_peft_config.to_dict()
    pairs = {name: (_plain(then[name]), _plain(now[name])) for name in _OF_ADAPTERS if name in then and name in now}
    return {name: f"{name} was {one!r} and is {other!r}" for name, (one, other) in pairs.items() if one != other}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | list | tuple) else getattr(value, "value", value)


def _pairs(config: RaftConfig) -> list[list[Any]]:
    return [list(pair) for pair in config.grid]
