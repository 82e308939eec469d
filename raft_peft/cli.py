"""The command line: `raft-peft predict`, `raft-peft compare` and `raft-peft plan`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

COMPARE_HELP = """\
Train methods side by side on your data and see which is best.

  raft-peft compare --model HuggingFaceTB/SmolLM2-135M-Instruct --task stsb_1k \\
      --methods rail,zero_shot,ce,special_token,raft --seeds 3 --output_dir comparison

Interrupted, the same command goes on with what is missing.
"""
PLAN_HELP = """\
How much memory fine-tuning takes, and with which settings it fits. Reads the model's config alone, no weights.

  raft-peft plan --model google/gemma-2-9b-it --gpu-memory 24GB

What is left open is chosen: the fastest settings which fit.
"""
PREDICT_HELP = """\
Predict a number for each row of a file, and write the rows with it to another (.jsonl or .csv).

  raft-peft predict rows.jsonl predictions.jsonl --model stars-raft
  raft-peft predict rows.csv predictions.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5

Each row has a `prompt`. Interrupted, the same command goes on behind the last row that was written.
"""
USAGE = """\
usage: raft-peft predict [options]    numbers for the rows of a file
       raft-peft compare [options]    train methods side by side
       raft-peft plan [options]       the memory of training, before any

raft-peft predict --help, raft-peft compare --help and raft-peft plan --help list the options.
"""


def compare(arguments: Sequence[str]) -> None:
    from transformers import HfArgumentParser

    from raft_peft.compare import CompareSettings, compare_methods

    parser = HfArgumentParser(
        CompareSettings,
        prog="raft-peft compare",
        description=COMPARE_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    (settings,) = parser.parse_args_into_dataclasses(args=list(arguments))
    print(compare_methods(settings))


def plan(arguments: Sequence[str]) -> None:
    parser = ArgumentParser("raft-peft plan", description=PLAN_HELP, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Name or folder of a language model.")
    parser.add_argument("--gpu-memory", help="What there is, as 24GB (10^9 bytes) or 24GiB (2^30 bytes).")
    parser.add_argument("--quantization", help="none, nf4 or int8; by default none or nf4, as it fits.")
    parser.add_argument("--gradient-checkpointing", choices=("on", "off"), help="By default as it fits.")
    parser.add_argument("--batch-size", type=int, help="Rows in a forward pass; by default as many as fit.")
    parser.add_argument("--global-batch-size", type=int, default=16, help="Rows in an optimizer step (%(default)s).")
    parser.add_argument("--max-length", type=int, default=512, help="Tokens in a row (%(default)s).")
    parser.add_argument("--r", type=int, default=16, help="Rank of LoRA on all linear layers (%(default)s).")
    parser.add_argument("--optim", default="adamw_torch_fused", help="As in TrainingArguments (%(default)s).")
    parser.add_argument("--dtype", help="Of weights that are not quantized; by default bfloat16, on the CPU float32.")
    parser.add_argument("--attn-implementation", help="eager, sdpa, ...; by default the trainer's choice.")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (%(default)s).")
    parser.add_argument("--trust-remote-code", action="store_true", help="Whether a model's own code may be run.")
    settings = vars(parser.parse_args(list(arguments)))
    checkpointing = settings.pop("gradient_checkpointing")

    from raft_peft.planning import plan_memory

    print(plan_memory(gradient_checkpointing=None if checkpointing is None else checkpointing == "on", **settings))


def predict(arguments: Sequence[str]) -> None:
    parser = ArgumentParser("raft-peft predict", description=PREDICT_HELP, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("source", help="The rows, .jsonl or .csv, with a `prompt` each.")
    parser.add_argument("target", help="Where they are written with their `prediction`, .jsonl or .csv.")
    parser.add_argument(
        "--model", required=True, help="Folder or name of a model that was saved with its grid, or any."
    )
    parser.add_argument(
        "--grid", help="The numbers that the model may answer with, as --grid=1,2,3,4,5; by default the saved."
    )
    parser.add_argument("--method", help="By default as trained, or raft.")
    parser.add_argument("--decision", help="mean, median or mode; by default as trained.")
    parser.add_argument("--max-length", type=int, help="The most tokens of a prompt; by default as trained.")
    parser.add_argument("--dtype", help="Of the weights; by default as trained.")
    parser.add_argument("--batch-size", type=int, default=64, help="Prompts in a forward pass (%(default)s).")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="Tokens in a forward pass (%(default)s).")
    parser.add_argument("--chunk-size", type=int, default=512, help="Rows that are written together (%(default)s).")
    parser.add_argument("--distribution", action="store_true", help="Add the probability of each number of the grid.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Whether a model's own code may be run.")
    given = vars(parser.parse_args(list(arguments)))
    of_file = {name: given.pop(name) for name in ("batch_size", "batch_tokens", "chunk_size", "distribution")}
    source, target, model = (given.pop(name) for name in ("source", "target", "model"))
    grid = given.pop("grid")

    from raft_peft.file_prediction import predict_file
    from raft_peft.predictor import RegressionPredictor

    predictor = RegressionPredictor.from_pretrained(model, None if grid is None else numbers(grid), **given)
    count = predict_file(predictor, source, target, **of_file)
    if count == 0:
        print(f"Nothing was predicted: {target} holds all rows of {source}. Remove it to predict them anew.")
    else:
        print(f"{count} rows were predicted and written to {target}.")


def numbers(text: str) -> list[float]:
    """The numbers of a grid, as they stand on a command line."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--grid {text!r} is not a list of numbers. Write them with commas: 1,2,3,4,5.") from None


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "predict": predict,
    "compare": compare,
    "plan": plan,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; an error of the input is one line, not a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        print(USAGE, end="", file=sys.stderr)
        return 2
    try:
        COMMANDS[command](rest)
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        print(f"raft-peft {command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
