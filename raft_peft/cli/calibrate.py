"""`raft-peft calibrate`."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from raft_peft.cli.options import (
    add_predictor_options,
    add_reasoning_options,
    check_rows,
    open_predictor,
    parse,
    parser_of,
    reasoning_options,
)
from raft_peft.cli.questions import calibrate as calibrate_questions
from raft_peft.cli.questions import question_form

if TYPE_CHECKING:
    from raft_peft.data.ratings import Ratings
    from raft_peft.prediction.calibrating.calibration import Calibration

SUMMARY = "learn intervals from held-out rows"
HELP = """\
Learn from held-out rows with labels how large the errors of a saved model are. The result is saved in its folder.

  raft-peft calibrate heldout.jsonl --model stars-raft
  raft-peft predict rows.jsonl predictions.jsonl --model stars-raft --interval 0.9

Do not use the rows of training, nor those by which a checkpoint was chosen.

For a model that was not trained, a few dozen rows are enough to learn a map from its predictions to the labels:

  raft-peft calibrate few.jsonl --model SmolLM2-135M-Instruct --grid 1,2,3,4,5 --label-map affine
  raft-peft predict rows.jsonl predictions.jsonl --model SmolLM2-135M-Instruct --grid 1,2,3,4,5 --calibrated
"""


def parser() -> ArgumentParser:
    from raft_peft.prediction.calibrating.intervals.kinds import INTERVALS
    from raft_peft.prediction.calibrating.label_map import LABEL_MAPS

    parser = parser_of("calibrate", "ROWS --model FOLDER", HELP)
    parser.add_argument(
        "source", help="The rows. Each has a prompt and a label, or targets; see raft-peft predict --help."
    )
    parser.add_argument("--label-column", default="label", help="The column of the label (%(default)s).")
    parser.add_argument(
        "--intervals",
        choices=INTERVALS,
        help="constant: all intervals have the same width. adaptive: the width follows the distribution. quantiles: "
        "central intervals of the distribution. By default adaptive after training with a proper loss of the "
        "distribution, else constant.",
    )
    parser.add_argument(
        "--group-column",
        metavar="COLUMN",
        help="Column with the name of each row's group. Intervals then cover each group by itself.",
    )
    parser.add_argument(
        "--label-map",
        choices=LABEL_MAPS,
        help="Also learn a map from predictions to labels, for predict --calibrated.",
    )
    parser.add_argument(
        "--round-to-grid",
        action="store_true",
        help="Round the ends of intervals to numbers of the grid. All labels must be such numbers.",
    )
    add_reasoning_options(parser)
    add_predictor_options(parser)
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.data.row_sources import read_rows
    from raft_peft.methods.saved_folder import CALIBRATION_NAME, nearest_folder
    from raft_peft.prediction.evaluation import labelled_prompts

    folder = Path(options.model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {options.model!r} to save the calibration in.{nearest_folder(options.model)} A model "
            f"of the Hub is downloaded by: hf download {options.model} --local-dir FOLDER."
        )
    form = question_form(parser, options, with_targets=True)
    if form is not None:
        calibrate_questions(options, form)
        return
    reasoning = reasoning_options(options)
    check_rows(options, options.label_column, options.group_column)
    predictor = open_predictor(options)
    labels: list[float | Ratings] = []
    prompts = labelled_prompts(
        islice(read_rows(options.source), options.limit),
        labels,
        predictor.grid,
        label_column=options.label_column,
    )
    calibration = predictor.calibrate(
        prompts,
        labels,
        options.batch_size,
        intervals=options.intervals,
        groups=options.group_column,
        label_map=options.label_map,
        round_to_grid=options.round_to_grid,
        batch_tokens=options.batch_tokens,
        **reasoning,
    )
    replaces = " It replaces the calibration that was there." if (folder / CALIBRATION_NAME).is_file() else ""
    calibration.save(folder)
    print(f"Calibrated on {len(calibration.errors)} rows. Saved in {folder}.{replaces}")
    _print_intervals(calibration)
    if calibration.label_map is not None:
        before, after = _rmse(calibration.errors), _rmse(calibration.mapped_errors)
        kind = calibration.label_map.kind
        print(f"The {kind} map takes the RMSE from {before:.3g} to {after:.3g}, on rows that it did not see.")


def _rmse(errors: Sequence[float] | None) -> float:
    return math.sqrt(sum(error**2 for error in errors or ()) / len(errors or ()))


def _print_intervals(calibration: Calibration) -> None:
    from raft_peft.prediction.calibrating.calibration import USUAL_LEVEL

    for group in dict.fromkeys(calibration.groups or (None,)):
        _print_levels(calibration, group)
    if calibration.kind == "adaptive":
        print("s is about the standard deviation of a row's own distribution.")
    if len(calibration.mean_widths) > 1:
        widths = ", ".join(f"{width:.3g} ({kind})" for kind, width in calibration.mean_widths.items())
        print(f"The intervals are {calibration.kind}. Mean width at level {USUAL_LEVEL}: {widths}.")


def _print_levels(calibration: Calibration, group: str | None) -> None:
    """How far a label lies from its prediction, or how far out in its distribution, at the usual levels."""
    rows = len(calibration.errors) if group is None else (calibration.groups or ()).count(group)
    of = "labels" if group is None else f"labels of {group!r}"
    for level in (0.5, 0.8, 0.9, 0.95):
        if (rows + 1) * (1 - level) < 1 - 1e-9:
            continue
        if calibration.kind == "quantiles":
            own = 1 - calibration.tail(level, group)
            print(f"{level:.0%} of {of} lie within the model's own {_percent(own)} interval.")
            continue
        mapped = calibration.label_map is not None
        times = " times s" if calibration.kind == "adaptive" else ""
        width = calibration.half_width(level, group, mapped=mapped)
        print(f"{level:.0%} of {of} lie within {width:.3g}{times} of the {'mapped ' * mapped}prediction.")


def _percent(share: float) -> str:
    """A share with one decimal, or so many that what is missing to 100 % can be seen."""
    decimals = 1 if share >= 1 else max(1, math.ceil(-math.log10(1 - share)) - 2)
    return f"{share:.{decimals}%}"
