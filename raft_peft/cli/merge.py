"""`raft-peft merge`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from raft_peft.cli.options import DTYPES, parse, parser_of

SUMMARY = "make one model of an adapter and its base"
HELP = """\
Merge an adapter into its base model, and save it as an ordinary model folder that predicts the same.

  raft-peft merge stars-raft stars-merged

A base that was quantized in training is dequantized. The new folder has its own model card, and the calibration of
the adapter if there is one. Before anything is saved, the command checks that predictions change by rounding only.
"""


def parser() -> ArgumentParser:
    parser = parser_of("merge", "FOLDER NEW_FOLDER", HELP)
    parser.add_argument("source", help="Folder or name of a saved adapter.")
    parser.add_argument("target", help="A new folder.")
    parser.add_argument("--dtype", choices=DTYPES, help="Dtype of the merged weights. By default that of training.")
    parser.add_argument("--autocast", choices=DTYPES[1:], help="Dtype of the products. The merged model uses it too.")
    parser.add_argument(
        "--tolerance", type=float, help="How much a prediction may change. By default as much as rounding explains."
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Allow the model's own code to run.")
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
    print(
        f"The merged model is in {options.target}. Predictions of a few prompts changed by at most {merged.moved:.2g}."
    )
    if merged.moved > 0:
        print(merged.reason)
