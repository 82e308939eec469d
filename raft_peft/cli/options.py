"""Options that several commands share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raft_peft.prediction.predictor import RegressionPredictor

GRID_HELP = (
    "The numbers that the model may answer with: --grid=1,2,3,4,5 or 0..100 or 0..5..0.5, or with texts of their own, "
    "--grid=0=no,1=yes"
)

DTYPES = ("auto", "bfloat16", "float16", "float32")


def parser_of(command: str, description: str) -> ArgumentParser:
    return ArgumentParser(f"raft-peft {command}", description=description, formatter_class=RawDescriptionHelpFormatter)


def add_predictor_options(parser: ArgumentParser) -> None:
    """What is read, by which model, and how."""
    parser.add_argument(
        "--model", required=True, help="Folder or name of a model that was saved with its grid, or any."
    )
    parser.add_argument("--grid", help=f"{GRID_HELP}; by default the saved.")
    parser.add_argument(
        "--prompt-template",
        help="The prompt, from a row's columns in braces: --prompt-template='Review: {text} Stars:'. By default the "
        "column `prompt`.",
    )
    parser.add_argument("--method", help="By default as trained, or raft.")
    parser.add_argument("--decision", help="mean, median, mode or quantile:LEVEL; by default as trained.")
    parser.add_argument("--max-length", type=int, help="The most tokens of a prompt; by default as trained.")
    parser.add_argument("--dtype", choices=DTYPES, help="Of the weights; by default as trained.")
    parser.add_argument("--batch-size", type=int, default=64, help="Prompts in a forward pass (%(default)s).")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="Tokens in a forward pass (%(default)s).")
    parser.add_argument("--trust-remote-code", action="store_true", help="Whether a model's own code may be run.")


def open_predictor(options: Namespace) -> RegressionPredictor:
    """The model of the options, ready to predict."""
    from raft_peft.grid import NumberGrid
    from raft_peft.prediction.predictor import RegressionPredictor

    settings: Mapping[str, Any] = vars(options)
    names = ("method", "decision", "max_length", "dtype", "trust_remote_code")
    grid = None if options.grid is None else NumberGrid.parse(options.grid)
    try:
        return RegressionPredictor.from_pretrained(options.model, grid, **{name: settings[name] for name in names})
    except OSError as error:
        if options.model in str(error):
            raise
        # What the Hub's client says does not name the model.
        raise OSError(
            f"The model {options.model!r} cannot be opened: {error}\nPass a folder that holds a model and its "
            "tokenizer, or the name of a model on the Hub that can be reached."
        ) from error


def check_writable(path: str | None) -> None:
    """Refuse a file that cannot be made, before hours of prediction and not behind them.

    Raises:
        FileNotFoundError: there is no folder for it.
    """
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(Path(path).parent)!r} to write {Path(path).name} to.")
