"""`raft-peft predict`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_peft.cli.options import (
    add_predictor_options,
    add_reasoning_options,
    check_calibration,
    check_rows,
    parse,
    parser_of,
    positive,
    reasoning_options,
    share,
)
from raft_peft.cli.questions import check_intervals, question_form, question_predictor
from raft_peft.cli.remote import add_server_options, number_predictor

if TYPE_CHECKING:
    from raft_peft.data.questions.form import QuestionForm

SUMMARY = "predict numbers for the rows of a file"
HELP = """\
Predict a number for each row, or answer its typed questions, and write the rows with what was predicted.

  raft-peft predict rows.jsonl predictions.jsonl --model stars-raft
  raft-peft predict rows.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5 > predictions.jsonl
  raft-peft predict rows.jsonl predictions.jsonl --model stars --base-url http://localhost:8000/v1

Rows are a file in .jsonl, .csv, .tsv or .parquet, a folder of Dataset.save_to_disk (FOLDER, or FOLDER:SPLIT), or a
dataset of the Hub (OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT). Each has a `prompt`, or the columns of the prompt
template that the model was trained with; or for questions a `state`, see docs/questions.md.

If the first command is interrupted, run it again: it continues after the last row that was written. Without a second
file, the rows are printed as JSON Lines.
"""


def parser() -> ArgumentParser:
    parser = parser_of("predict", "ROWS [PREDICTIONS] --model MODEL", HELP)
    parser.add_argument("source", help="The rows. Each has a prompt, or a state of questions.")
    parser.add_argument(
        "target", nargs="?", help="File to write: .jsonl, .csv or .tsv. By default the rows are printed."
    )
    parser.add_argument(
        "--interval",
        type=share,
        metavar="SHARE",
        help="Add `low` and `high`, which cover this share of labels, or of choices `options`. Needs raft-peft "
        "calibrate.",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="Map the predictions to the labels. Needs raft-peft calibrate --label-map.",
    )
    parser.add_argument(
        "--distribution",
        action="store_true",
        help="Add the probability of each number of the grid, their sum as `mass`, and `entropy`; of questions "
        "`probabilities` and `label_mass`.",
    )
    parser.add_argument(
        "--reasons",
        action="store_true",
        help="Add the `reasonings`, the number behind each as `numbers`, how far these differ as `between`, the mean "
        "spread of their distributions as `within`, and how many are `unfinished`.",
    )
    parser.add_argument(
        "--chunk-size",
        type=positive,
        help="Rows that are predicted and written together. By default 512, and 64 with --num-reasonings.",
    )
    add_reasoning_options(parser)
    add_predictor_options(parser)
    add_server_options(parser)
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.data.row_files import as_json, check_target
    from raft_peft.data.row_sources import read_rows

    form = question_form(parser, options)
    if form is None:
        reasoning_options(options)
        check_rows(options)
        check_calibration(options, mapped=options.calibrated)
    else:
        check_intervals(options, form)
    if options.target is not None:
        check_target(Path(options.target))
    predictor = number_predictor(options) if form is None else question_predictor(options)
    names = ("batch_size", "batch_tokens", "chunk_size", "distribution", "interval")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    predict_rows, predict_file = _ways_to_predict(options, form)
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
        rows = "all rows" if options.limit is None else f"the first {options.limit} rows"
        print(
            f"Nothing was predicted: {options.target} already holds {rows} of {options.source}. Remove it to predict "
            "them again."
        )
    else:
        print(f"{count} rows were predicted and written to {options.target}.")


def _ways_to_predict(options: Namespace, form: QuestionForm | None) -> tuple[Callable[..., Any], Callable[..., int]]:
    """What predicts rows, and what predicts those of a file: a number each, or the answers to their questions."""
    if form is None:
        from raft_peft.prediction.files import predict_file, predict_rows

        of_numbers: Any = {"calibrated": options.calibrated, "reasons": options.reasons, **reasoning_options(options)}
        return partial(predict_rows, **of_numbers), partial(predict_file, **of_numbers)
    from raft_peft.prediction.questions.files import answer_file, answer_rows

    return partial(answer_rows, form=form), partial(answer_file, form=form)
