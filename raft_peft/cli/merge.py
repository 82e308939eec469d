"""`raft-peft merge`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from raft_peft.cli.options import DTYPES, parse, parser_of

SUMMARY = "an adapter and its base as one model"
HELP = """\
Merge an adapter into its base model, and save it as an ordinary model folder that predicts the same.

  raft-peft merge stars-raft stars-merged

A base that was quantized in training is dequantized. The new folder has a model card of its own, and the calibration
where the adapter has one. That predictions moved by no more than rounding is checked before anything is kept.
"""


def parser() -> ArgumentParser:
    parser = parser_of("merge", "FOLDER NEW_FOLDER", HELP)
    parser.add_argument("source", help="Folder or name of a saved adapter.")
    parser.add_argument("target", help="A new folder.")
    parser.add_argument("--dtype", choices=DTYPES, help="Of the merged weights; by default as trained.")
    parser.add_argument("--autocast", choices=DTYPES[1:], help="Of the products, which the merged model keeps.")
    parser.add_argument("--tolerance", type=float, help="How far a prediction may move; by default by rounding.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Whether a model's own code may be run.")
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.prediction.merging import merge_and_save

    merged = merge_and_save(
        options.source,
        options.target,
        dtype=options.dtype,
        autocast=options.autocast,
        tolerance=options.tolerance,
        trust_remote_code=options.trust_remote_code,
    )
    print(f"The merged model is in {options.target}. Predictions moved by at most {merged.moved:.2g}.")
    if merged.moved > 0:
        print(merged.reason)
