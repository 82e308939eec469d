"""`raft-peft calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raft_peft.cli.options import add_predictor_options, open_predictor, parser_of

SUMMARY = "intervals, from held-out rows"
HELP = """\
Learn from held-out rows with labels how far a saved model errs, and keep it in the model's folder.

  raft-peft calibrate heldout.jsonl --model stars-raft
  raft-peft predict rows.jsonl predictions.jsonl --model stars-raft --interval 0.9

The rows must be neither those of training nor those by which a checkpoint was chosen.
"""


def run(arguments: Sequence[str]) -> None:
    parser = parser_of("calibrate", HELP)
    parser.add_argument("source", help="The rows, .jsonl or .csv, with a `prompt` and a label each.")
    add_predictor_options(parser)
    parser.add_argument("--label-column", default="label", help="The column of the label (%(default)s).")
    options = parser.parse_args(list(arguments))

    from raft_peft.data.row_files import read_rows
    from raft_peft.prediction.evaluation import labelled_prompts

    folder = Path(options.model)
    if not folder.is_dir():
        raise ValueError(
            f"{options.model!r} is no folder to keep the calibration in. Download the model first: hf download "
            f"{options.model} --local-dir FOLDER."
        )
    predictor = open_predictor(options)
    labels: list[float] = []
    prompts = labelled_prompts(
        read_rows(options.source),
        labels,
        predictor.grid,
        label_column=options.label_column,
        prompt_template=options.prompt_template,
    )
    calibration = predictor.calibrate(prompts, labels, options.batch_size, batch_tokens=options.batch_tokens)
    calibration.save(folder)
    count = len(calibration.errors)
    print(f"Calibrated on {count} rows; kept in {folder}.")
    for level in (0.5, 0.8, 0.9, 0.95):
        if (count + 1) * (1 - level) >= 1 - 1e-9:
            print(f"{level:.0%} of labels lie within {calibration.half_width(level):.3g} of the prediction.")
