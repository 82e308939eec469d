"""`raft-peft train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SUMMARY = "fine-tune a model on rows with labels"


def parser() -> Any:
    from raft_peft.train import make_parser

    return make_parser()


def run(parser: Any, words: Sequence[str]) -> None:
    from raft_peft import train

    train.run(parser, words)
