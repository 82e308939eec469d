"""Going on from a checkpoint: whether it was written by a run of these settings."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from raft_peft.heads import Head
from raft_peft.main_process import warn
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
)


def check_resumed(checkpoint: str, now: RaftConfig, head: Head, tokenizer: Any) -> None:
    """Compare a run with the one that wrote the checkpoint from which it goes on; what differs is said.

    Args:
        checkpoint: the folder; one without a `raft_config.json` is not compared.
        now: what the run would write into its own.
        head: the head of the run.
        tokenizer: the model's.

    Raises:
        ValueError: the grid is another one; the head is, where either has parameters; or an adapter is to go on from
            a whole model, or the other way round.
    """
    path = Path(checkpoint) / RAFT_CONFIG_NAME
    if not path.is_file():
        return
    then = RaftConfig.load(path)
    start = f"Training cannot go on from {checkpoint!r}: "
    cure = "Set it as it was, or start a new run with another output_dir."
    if list(then.grid) != list(now.grid):
        difference = origin_difference({"grid": _pairs(then)}, {"grid": _pairs(now)})
        raise ValueError(f"{start}it was trained for the {difference}. {cure}")
    if then.adapter is not None and then.adapter != now.adapter:
        kinds = {True: "an adapter", False: "a whole model"}
        raise ValueError(
            f"{start}it holds {kinds[then.adapter]}, and the run trains {kinds[bool(now.adapter)]}. {cure}"
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
    if changed:
        warn(
            logger,
            f"The checkpoint {checkpoint} was written by a run of other settings: {', '.join(changed)}. Training goes "
            "on from its weights and its step with the settings of this run.",
        )


def _pairs(config: RaftConfig) -> list[list[Any]]:
    return [list(pair) for pair in config.grid]
