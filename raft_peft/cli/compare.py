"""`raft-peft compare`."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

SUMMARY = "train methods side by side"
HELP = """\
Train methods side by side on your data and see which is best.

  raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --task stsb_1k \\
      --methods rail,zero_shot,ce,special_token,raft --seeds 3 --output_dir comparison

Interrupted, the same command goes on with what is missing.
"""


def run(arguments: Sequence[str]) -> None:
    from transformers import HfArgumentParser

    from raft_peft.compare import CompareSettings, compare_methods
    from raft_peft.training.options import unknown_options

    parser = HfArgumentParser(
        CompareSettings, prog="raft-peft compare", description=HELP, formatter_class=RawDescriptionHelpFormatter
    )
    settings, unknown = parser.parse_args_into_dataclasses(args=list(arguments), return_remaining_strings=True)
    if unknown:
        raise unknown_options(parser, [word for word in unknown if word.startswith("-")] or unknown)
    print(compare_methods(settings))
