"""`raft-peft reason`."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft_peft.cli.options import (
    add_predictor_options,
    add_reasoning_options,
    check_rows,
    open_predictor,
    parse,
    parser_of,
    positive,
    reasoning_options,
)

SUMMARY = "let a model write reasonings to train on"
HELP = """\
Let a model write its own reasonings for the rows of a file, and read a number behind each. The result is rows to train
on as they are: with a list of texts as `reasoning`, instead of what they had there, and the numbers as `numbers`.

  raft-peft reason train.jsonl own.jsonl --model judge-raft --num-reasonings 4 --keep-within 1
  raft-peft train --train_file own.jsonl ...
  raft-peft reason train.jsonl own.jsonl --model SmolLM2-135M-Instruct --grid 1..5 --score-prefix $'\\n[RESULT] '

Left out are reasonings that are empty, do not end, or hold their score already. If the command is interrupted, run it
again: it continues after the last row that was written.
"""


def parser() -> ArgumentParser:
    parser = parser_of("reason", "ROWS OUT.jsonl --model MODEL", HELP)
    parser.add_argument("source", help="The rows. Each has a prompt; see raft-peft predict --help.")
    parser.add_argument("target", help="File to write: .jsonl.")
    parser.add_argument(
        "--keep-within",
        type=_distance,
        metavar="X",
        help="Keep the reasonings whose number is at most X from the row's label, in the unit of the labels.",
    )
    parser.add_argument(
        "--label-column", default="label", help="The column of the label, for --keep-within (%(default)s)."
    )
    parser.add_argument(
        "--keep-unfinished", action="store_true", help="Keep reasonings that did not end by themselves, too."
    )
    parser.add_argument(
        "--chunk-size", type=positive, default=64, help="Rows that are written together (%(default)s)."
    )
    add_reasoning_options(parser, by_default=4)
    add_predictor_options(parser)
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.data.row_files import check_target
    from raft_peft.prediction.reasoning.files import check_reason_target, reason_file

    for name in ("questions", "question_template"):
        if getattr(options, name) is not None:
            raise ValueError(f"`{name}` is for typed questions, which have no reasonings. Leave it out.")
    check_reason_target(options.target)
    check_target(Path(options.target))
    check_rows(options, options.label_column if options.keep_within is not None else None)
    names = ("keep_within", "label_column", "keep_unfinished", "limit", "batch_size", "batch_tokens", "chunk_size")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    settings |= reasoning_options(options)
    count = reason_file(open_predictor(options), options.source, options.target, **settings)
    if count == 0:
        print(f"Nothing was written: {options.target} already holds these rows of {options.source}.")
    else:
        print(f"Reasonings for {count} rows were written to {options.target}.")


def _distance(text: str) -> float:
    """A number from 0 of the command line."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise ArgumentTypeError(f"{text!r} is not a number from 0, such as 1")
    return number
