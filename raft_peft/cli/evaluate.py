"""`raft-peft evaluate`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from raft_peft.cli.options import (
    add_predictor_options,
    add_reasoning_options,
    check_calibration,
    check_rows,
    check_writable,
    parse,
    parser_of,
    reasoning_options,
    share,
)
from raft_peft.cli.questions import evaluate as evaluate_questions
from raft_peft.cli.questions import question_form
from raft_peft.cli.remote import add_server_options, number_predictor

SUMMARY = "compute metrics on rows with labels"
HELP = """\
Predict rows that have labels, and print the metrics.

  raft-peft evaluate test.jsonl --model stars-raft --picture prediction_and_truth.png
  raft-peft evaluate test.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5 --label-column stars
  raft-peft evaluate tickets.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --questions questions.json
  raft-peft evaluate tickets.jsonl --model decisions --base-url http://localhost:8000/v1 --questions questions.json
"""


def parser() -> ArgumentParser:
    parser = parser_of("evaluate", "ROWS --model MODEL", HELP)
    parser.add_argument(
        "source", help="The rows. Each has a prompt and a label, or targets; see raft-peft predict --help."
    )
    parser.add_argument("--label-column", default="label", help="The column of the label (%(default)s).")
    parser.add_argument("--output", help="A JSON file for the metrics.")
    parser.add_argument("--picture", help="A picture of predictions over the truth, such as picture.png.")
    parser.add_argument(
        "--interval",
        type=share,
        metavar="SHARE",
        help="Also report how many labels lie in the intervals of this level. Needs raft-peft calibrate. By default "
        "0.9 if the model is calibrated.",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="Evaluate predictions that are mapped to the labels. Needs raft-peft calibrate --label-map.",
    )
    add_reasoning_options(parser)
    add_predictor_options(parser)
    add_server_options(parser)
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)
    check_writable(options.output)
    check_writable(options.picture)
    if options.picture is not None:
        _check_picture(options.picture)
    form = question_form(parser, options, with_targets=True)
    if form is not None:
        evaluate_questions(options, form)
        return
    reasoning = reasoning_options(options)
    check_rows(options, options.label_column)
    check_calibration(options, mapped=options.calibrated)

    from raft_peft.data.row_sources import read_rows
    from raft_peft.prediction.evaluation import evaluate_rows

    found = evaluate_rows(
        number_predictor(options),
        islice(read_rows(options.source), options.limit),
        label_column=options.label_column,
        batch_size=options.batch_size,
        batch_tokens=options.batch_tokens,
        interval=options.interval,
        calibrated=options.calibrated,
        **reasoning,
    )
    print(f"{len(found.labels)} rows of {options.source}")
    width = max(map(len, found.metrics), default=0)
    for name, value in found.metrics.items():
        print(f"{name:<{width}} {value:8.4f}")
    if options.output is not None:
        found.save(options.output)
    if options.picture is not None:
        from raft_peft.plots import plot_evaluation

        drawn = plot_evaluation(options.picture, found, Path(options.model).resolve().name)
        print(f"Pictures: {', '.join(map(str, drawn))}")


def _check_picture(path: str) -> None:
    """Raise a ValueError for a picture of a kind that cannot be drawn, a ModuleNotFoundError where none can."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--picture needs matplotlib. Run: pip install 'raft-peft[plots]'") from None
    kinds = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".") not in kinds:
        raise ValueError(f"A picture {path!r} cannot be drawn. End its name in one of .{', .'.join(kinds)}.")
