"""`raft-peft calibrate`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from raft_peft.cli.options import add_predictor_options, check_rows, open_predictor, parse, parser_of

SUMMARY = "intervals, from held-out rows"
HELP = """\
Learn from held-out rows with labels how far a saved model errs, and keep it in the model's folder.

  raft-peft calibrate heldout.jsonl --model stars-raft
  raft-peft predict rows.jsonl predictions.jsonl --model stars-raft --interval 0.9

The rows must be neither those of training nor those by which a checkpoint was chosen.
"""


def parser() -> ArgumentParser:
    parser = parser_of("calibrate", "ROWS --model FOLDER", HELP)
    parser.add_argument("source", help="The rows, with a prompt and a label each, see raft-peft predict --help.")
    parser.add_argument("--label-column", default="label", help="The column of the label (%(default)s).")
    add_predictor_options(parser)
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.data.row_sources import read_rows
    from raft_peft.methods.saved_folder import nearest_folder
    from raft_peft.prediction.evaluation import labelled_prompts

    folder = Path(options.model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {options.model!r} to keep the calibration in.{nearest_folder(options.model)} A model "
            f"of the Hub is downloaded by: hf download {options.model} --local-dir FOLDER."
        )
    check_rows(options, options.label_column)
    predictor = open_predictor(options)
    labels: list[float] = []
    prompts = labelled_prompts(
        islice(read_rows(options.source), options.limit),
        labels,
        predictor.grid,
        label_column=options.label_column,
    )
    calibration = predictor.calibrate(prompts, labels, options.batch_size, batch_tokens=options.batch_tokens)
    calibration.save(folder)
    count = len(calibration.errors)
    print(f"Calibrated on {count} rows; kept in {folder}.")
    for level in (0.5, 0.8, 0.9, 0.95):
        if (count + 1) * (1 - level) >= 1 - 1e-9:
            print(f"{level:.0%} of labels lie within {calibration.half_width(level):.3g} of the prediction.")
