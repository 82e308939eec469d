"""`raft-peft predict`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from raft_peft.cli.options import (
    add_predictor_options,
    check_calibration,
    check_rows,
    open_predictor,
    parse,
    parser_of,
    positive,
    share,
)

SUMMARY = "predict numbers for the rows of a file"
HELP = """\
Predict a number for each row, and write the rows with their predictions.

  raft-peft predict rows.jsonl predictions.jsonl --model stars-raft
  raft-peft predict rows.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5 > predictions.jsonl

Rows are a file in .jsonl, .csv, .tsv or .parquet, a folder of Dataset.save_to_disk (FOLDER, or FOLDER:SPLIT), or a
dataset of the Hub (OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT). Each has a `prompt`, or the columns of the prompt
template that the model was trained with.

If the first command is interrupted, run it again: it continues after the last row that was written. Without a second
file, the rows are printed as JSON Lines.
"""


def parser() -> ArgumentParser:
    parser = parser_of("predict", "ROWS [PREDICTIONS] --model MODEL", HELP)
    parser.add_argument("source", help="The rows. Each has a prompt.")
    parser.add_argument(
        "target", nargs="?", help="File to write: .jsonl, .csv or .tsv. By default the rows are printed."
    )
    parser.add_argument(
        "--interval",
        type=share,
        metavar="SHARE",
        help="Add the columns `low` and `high`, which cover this share of labels. Needs raft-peft calibrate.",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="Map the predictions to the labels. Needs raft-peft calibrate --label-map.",
    )
    parser.add_argument(
        "--distribution",
        action="store_true",
        help="Add the probability of each number of the grid, their sum as `mass`, and `entropy`.",
    )
    parser.add_argument(
        "--chunk-size", type=positive, default=512, help="Rows that are predicted and written together (%(default)s)."
    )
    add_predictor_options(parser)
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.data.row_files import as_json, check_target
    from raft_peft.data.row_sources import read_rows
    from raft_peft.prediction.files import predict_file, predict_rows

    check_rows(options)
    check_calibration(options.model, options.interval, mapped=options.calibrated)
    if options.target is not None:
        check_target(Path(options.target))
    predictor = open_predictor(options)
    names = ("batch_size", "batch_tokens", "chunk_size", "distribution", "interval", "calibrated")
    settings = {name: getattr(options, name) for name in names}
    if options.target is None:
        # On a terminal, rows and a progress bar would run into one another.
        settings["show_progress"] = False if sys.stdout.isatty() else None
        try:
            for made in predict_rows(predictor, islice(read_rows(options.source), options.limit), **settings):
                for row in made:
                    print(as_json(row), flush=True)
        except BrokenPipeError:  # what reads the rows has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    count = predict_file(predictor, options.source, options.target, limit=options.limit, **settings)
    if count == 0:
        print(
            f"Nothing was predicted: {options.target} already holds all rows of {options.source}. Remove it to "
            "predict them again."
        )
    else:
        print(f"{count} rows were predicted and written to {options.target}.")
