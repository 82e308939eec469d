"""`raft-peft compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SUMMARY = "train methods side by side"
USAGE = "raft-peft compare --model MODEL (--train_file FILE --grid GRID | --task TASK) --output_dir FOLDER [options]"
HELP = """\
Train methods side by side on your data and see which is best.

  raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --train_file reviews.csv --grid 1,2,3,4,5 \\
      --prompt_template 'Review: {text} Stars:' --label_column stars --output_dir comparison
  raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --task stsb_1k \\
      --methods rail,zero_shot,ce,special_token,raft --seeds 3 --output_dir comparison
  raft-peft compare --model google/gemma-2-2b-it --suite table13 --output_dir table13
  raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --task stsb_1k --output_dir comparison \\
      --methods raft,served:model=stsb-raft --base_url http://localhost:8000/v1

If the comparison is interrupted, run the same command again: it continues with what is missing.
"""


_ON_WHAT = (
    "model",
    "output_dir",
    "train_file",
    "eval_file",
    "test_file",
    "prompt_template",
    "chat",
    "system",
    "label_column",
    "task",
    "task_path",
    "grid",
    "split_seed",
    "max_train_samples",
    "max_eval_samples",
    "max_test_samples",
    "drop_leaks",
)
_WHAT = ("suite", "quick", "methods", "baseline", "encoder", "base_url", "decisions", "seeds", "train_sizes", "budget")


def parser() -> Any:
    from dataclasses import fields

    from raft_peft.compare import CompareSettings
    from raft_peft.training.options import options_parser

    how = [one.name for one in fields(CompareSettings) if one.name not in (*_ON_WHAT, *_WHAT)]
    groups = {"the rows": _ON_WHAT, "what is compared": _WHAT, "how it is trained and run": how}
    return options_parser((CompareSettings,), groups, {}, prog="raft-peft compare", usage=USAGE, description=HELP)


def run(parser: Any, words: Sequence[str]) -> None:
    from raft_peft.compare import compare_methods
    from raft_peft.training.options import parse_options

    (settings,) = parse_options(parser, words)
    print(compare_methods(settings))
