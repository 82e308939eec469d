"""The command line: `raft-peft`, with its commands."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raft_peft.cli import calibrate, compare, evaluate, merge, plan, predict, train

COMMANDS = {
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
    "compare": compare,
    "plan": plan,
    "calibrate": calibrate,
    "merge": merge,
}
USAGE = (
    "\n".join(
        f"{'usage:' if index == 0 else '      '} raft-peft {name:<10} [options]    {command.SUMMARY}"
        for index, (name, command) in enumerate(COMMANDS.items())
    )
    + "\n\nraft-peft train --help, and so on, list the options.\n"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; an error of the input is one line, not a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        print(USAGE, end="", file=sys.stderr)
        return 2
    try:
        with _libraries_hushed():
            COMMANDS[command].run(rest)
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        print(f"raft-peft {command}: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _libraries_hushed() -> Iterator[None]:
    """Without what the libraries beneath say to those who write against them, unless Python is told to warn (`-W`)."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\.")
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it lacks, when it is imported
        yield
