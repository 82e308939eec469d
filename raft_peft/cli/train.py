"""`raft-peft train`."""

from __future__ import annotations

from collections.abc import Sequence

SUMMARY = "fine-tune a model on rows with labels"


def run(arguments: Sequence[str]) -> None:
    from raft_peft.train import main

    main(arguments)
