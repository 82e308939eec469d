"""`raft-peft plan`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from raft_peft.cli.options import parse, parser_of

SUMMARY = "the memory of training, before any"
HELP = """\
How much memory fine-tuning takes, and with which settings it fits. Reads the model's config alone, no weights.

  raft-peft plan --model google/gemma-2-9b-it --gpu-memory 24GB

What is left open is chosen: the fastest settings which fit.
"""


def parser() -> ArgumentParser:
    parser = parser_of("plan", "--model MODEL", HELP)
    parser.add_argument("--model", required=True, help="Name or folder of a language model.")
    parser.add_argument("--gpu-memory", help="What there is, with its unit: 24GB (10^9 bytes) or 24GiB (2^30 bytes).")
    parser.add_argument("--quantization", help="none, nf4 or int8; by default none or nf4, as it fits.")
    parser.add_argument("--gradient-checkpointing", choices=("on", "off"), help="By default as it fits.")
    parser.add_argument("--batch-size", type=int, help="Rows in a forward pass; by default as many as fit.")
    parser.add_argument("--global-batch-size", type=int, default=16, help="Rows in an optimizer step (%(default)s).")
    parser.add_argument("--max-length", type=int, default=512, help="Tokens in a row (%(default)s).")
    parser.add_argument("--r", type=int, default=16, help="Rank of LoRA on all linear layers (%(default)s).")
    parser.add_argument("--optim", default="adamw_torch_fused", help="As in TrainingArguments (%(default)s).")
    parser.add_argument(
        "--dtype", help="Of weights that are not quantized; by default bfloat16, on the CPU float32 without NF4."
    )
    parser.add_argument("--attn-implementation", help="eager, sdpa, ...; by default the trainer's choice.")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (%(default)s).")
    parser.add_argument("--trust-remote-code", action="store_true", help="Whether a model's own code may be run.")
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    settings = vars(parse(parser, words))
    checkpointing = settings.pop("gradient_checkpointing")

    from raft_peft.planning import plan_memory

    print(plan_memory(gradient_checkpointing=None if checkpointing is None else checkpointing == "on", **settings))
