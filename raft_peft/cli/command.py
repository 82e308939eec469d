"""The command line: `raft-peft`, with its commands."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

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


# What a user's settings, files and machine can cause. All else is a mistake of ours or of a library beneath.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    An error of the input is one line, not a traceback. An internal one has its traceback, and ends with how to report
    it.
    """
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
    except KeyboardInterrupt:
        print(f"raft-peft {command}: interrupted.", file=sys.stderr)
        return 130
    except _EXPLAINED as error:
        print(f"raft-peft {command}: {error if str(error) else type(error).__name__}", file=sys.stderr)
        return 1
    except Exception as error:
        if _is_out_of_memory(error):
            print(
                f"raft-peft {command}: there is not enough memory: {error}\nTake smaller batches, shorter prompts, "
                "quantized weights or a smaller model; raft-peft plan shows what training takes.",
                file=sys.stderr,
            )
            return 1
        traceback.print_exc()
        print(_how_to_report(words, error), file=sys.stderr)
        return 1
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    # By name, since torch need not be loaded here.
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _how_to_report(words: Sequence[str], error: Exception) -> str:
    """What stands behind the traceback of an internal error."""
    versions = {"Python": platform.python_version()}
    for name in ("raft-peft", "torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return (
        f"\nraft-peft {words[0]}: an internal error, {type(error).__name__}. Either your input is not at fault, or a "
        "message should have said why. Please open an issue in raft-peft's repository (under Issues), with the "
        "traceback above, two rows of your data or like yours, and\n"
        f"  command: raft-peft {shlex.join(words)}\n"
        f"  versions: {', '.join(f'{name} {number}' for name, number in versions.items())}, {platform.platform()}"
    )


@contextmanager
def _libraries_hushed() -> Iterator[None]:
    """Without what the libraries beneath say to those who write against them, unless Python is told to warn (`-W`)."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\.")
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it lacks, when it is imported
        yield
