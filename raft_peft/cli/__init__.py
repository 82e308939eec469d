"""The command line: `raft-peft`."""

from raft_peft.cli.command import main

__all__ = ["main"]
