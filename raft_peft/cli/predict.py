"""`raft-peft predict`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from raft_peft.cli.options import add_predictor_options, open_predictor, parser_of

SUMMARY = "numbers for the rows of a file"
HELP = """\
Predict a number for each row of a file (.jsonl or .csv), and write the rows with it.

  raft-peft predict rows.jsonl predictions.jsonl --model stars-raft
  raft-peft predict rows.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5 > predictions.jsonl

Each row has a `prompt`. Interrupted, the first command goes on behind the last row that was written; without a second
file the rows are printed, as JSON Lines.
"""


def run(arguments: Sequence[str]) -> None:
    parser = parser_of("predict", HELP)
    parser.add_argument("source", help="The rows, .jsonl or .csv, with a `prompt` each.")
    parser.add_argument("target", nargs="?", help="Where they are written, .jsonl or .csv; by default printed.")
    add_predictor_options(parser)
    parser.add_argument("--chunk-size", type=int, default=512, help="Rows that are written together (%(default)s).")
    parser.add_argument(
        "--interval", type=float, help="Add an interval that covers this share of labels, after raft-peft calibrate."
    )
    parser.add_argument("--distribution", action="store_true", help="Add the probability of each number of the grid.")
    options = parser.parse_args(list(arguments))

    from raft_peft.data.row_files import as_json, read_rows
    from raft_peft.prediction.files import predict_file, predict_rows

    predictor = open_predictor(options)
    names = ("batch_size", "batch_tokens", "chunk_size", "distribution", "interval", "prompt_template")
    settings = {name: getattr(options, name) for name in names}
    if options.target is None:
        try:
            for rows in predict_rows(predictor, read_rows(options.source), **settings):
                for row in rows:
                    print(as_json(row), flush=True)
        except BrokenPipeError:  # what reads the rows has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    count = predict_file(predictor, options.source, options.target, **settings)
    if count == 0:
        print(
            f"Nothing was predicted: {options.target} holds all rows of {options.source}. Remove it to predict them "
            "anew."
        )
    else:
        print(f"{count} rows were predicted and written to {options.target}.")
