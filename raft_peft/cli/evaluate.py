"""`raft-peft evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raft_peft.cli.options import add_predictor_options, check_writable, open_predictor, parser_of

SUMMARY = "metrics on rows with labels"
HELP = """\
Predict the rows of a file (.jsonl or .csv) that have a label each, and compare.

  raft-peft evaluate test.jsonl --model stars-raft --picture prediction_and_truth.png
  raft-peft evaluate test.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5 --label-column stars
"""


def run(arguments: Sequence[str]) -> None:
    parser = parser_of("evaluate", HELP)
    parser.add_argument("source", help="The rows, .jsonl or .csv, with a `prompt` and a label each.")
    add_predictor_options(parser)
    parser.add_argument("--label-column", default="label", help="The column of the label (%(default)s).")
    parser.add_argument("--output", help="A JSON file for the metrics.")
    parser.add_argument("--picture", help="A picture of predictions over the truth, such as picture.png.")
    options = parser.parse_args(list(arguments))

    check_writable(options.output)
    check_writable(options.picture)
    if options.picture is not None:
        _check_picture(options.picture)

    from raft_peft.data.row_files import read_rows
    from raft_peft.prediction.evaluation import evaluate_rows

    found = evaluate_rows(
        open_predictor(options),
        read_rows(options.source),
        label_column=options.label_column,
        prompt_template=options.prompt_template,
        batch_size=options.batch_size,
        batch_tokens=options.batch_tokens,
    )
    print(f"{len(found.labels)} rows of {options.source}")
    for name, value in found.metrics.items():
        print(f"{name:<12} {value:8.4f}")
    if options.output is not None:
        found.save(options.output)
    if options.picture is not None:
        from raft_peft.plots import plot_predictions

        plot_predictions(options.picture, found.labels, {str(options.model): found.predictions})


def _check_picture(path: str) -> None:
    """Raise a ValueError for a picture of a kind that cannot be drawn, a ModuleNotFoundError where none can."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--picture needs matplotlib. Run: pip install 'raft-peft[plots]'") from None
    kinds = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".") not in kinds:
        raise ValueError(f"A picture {path!r} cannot be drawn. End its name in one of .{', .'.join(kinds)}.")
