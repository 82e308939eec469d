"""The command line: `raft-peft compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMPARE_HELP = """\
Train methods side by side on your data and see which is best.

  raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --task stsb_1k \\
      --methods rail,zero_shot,ce,special_token,raft --seeds 3 --output_dir comparison

Interrupted, the same command goes on with what is missing.
"""
USAGE = "usage: raft-peft compare [options]\n\nraft-peft compare --help lists the options.\n"


def compare(arguments: Sequence[str]) -> None:
    from argparse import RawDescriptionHelpFormatter

    from transformers import HfArgumentParser

    from raft_peft.compare import CompareSettings, compare_methods

    parser = HfArgumentParser(
        CompareSettings,
        prog="raft-peft compare",
        description=COMPARE_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    (settings,) = parser.parse_args_into_dataclasses(args=list(arguments))
    print(compare_methods(settings))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; an error of the input is one line, not a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command != "compare":
        print(USAGE, end="", file=sys.stderr)
        return 2
    try:
        compare(rest)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"raft-peft {command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
