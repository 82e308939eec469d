"""The command line: `raft-peft`, with its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raft_peft.cli import calibrate, compare, evaluate, merge, plan, predict, push, reason, serve, train
from raft_peft.console import run_command

# Each makes the parser of its options, and carries out what the words behind its name say.
COMMANDS = {
    "train": train,
    "predict": predict,
    "reason": reason,
    "evaluate": evaluate,
    "compare": compare,
    "plan": plan,
    "calibrate": calibrate,
    "merge": merge,
    "push": push,
    "serve": serve,
}
USAGE = (
    "\n".join(
        f"{'usage:' if index == 0 else '      '} raft-peft {name:<10} [options]    {command.SUMMARY}"
        for index, (name, command) in enumerate(COMMANDS.items())
    )
    + "\n\nraft-peft COMMAND --help lists the options.\n"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code, see `run_command`."""
    words = sys.argv[1:] if arguments is None else arguments
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if name not in COMMANDS:
        print(USAGE, end="", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    return run_command(name, rest, command.parser, command.run)
