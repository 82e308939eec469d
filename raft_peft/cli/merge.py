"""`raft-peft merge`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from raft_peft.cli.options import DTYPES, parse, parser_of

SUMMARY = "an adapter and its base as one model"
HELP = """\
Merge an adapter into its base model, and save it as an ordinary model folder that predicts the same.

  raft-peft merge stars-raft stars-merged

A base that was quantized in training is dequantized. That predictions did not move is checked before anything is kept.
"""


def parser() -> ArgumentParser:
    parser = parser_of("merge", "FOLDER NEW_FOLDER", HELP)
    parser.add_argument("source", help="Folder or name of a saved adapter.")
    parser.add_argument("target", help="A new folder.")
    parser.add_argument("--dtype", choices=DTYPES, help="Of the merged weights; by default as trained.")
    parser.add_argument("--tolerance", type=float, help="How far a prediction may move; by default little.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Whether a model's own code may be run.")
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.prediction.merging import merge_and_save

    moved = merge_and_save(
        options.source,
        options.target,
        dtype=options.dtype,
        tolerance=options.tolerance,
        trust_remote_code=options.trust_remote_code,
    )
    print(f"The merged model is in {options.target}. Predictions moved by at most {moved:.2g}.")
