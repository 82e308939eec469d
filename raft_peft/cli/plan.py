"""`raft-peft plan`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from raft_peft.cli.options import parse, parser_of

SUMMARY = "estimate the memory of training"
HELP = """\
Estimate the memory of fine-tuning, and find settings that fit. Only the model's config is read, no weights.

  raft-peft plan --model google/gemma-2-9b-it --gpu-memory 24GB

Settings that you do not give are chosen: the fastest that fit.
"""


def parser() -> ArgumentParser:
    parser = parser_of("plan", "--model MODEL", HELP)
    parser.add_argument("--model", required=True, help="Name or folder of a language model.")
    parser.add_argument(
        "--gpu-memory", help="Memory of the GPU, with its unit: 24GB (10^9 bytes) or 24GiB (2^30 bytes)."
    )
    parser.add_argument("--quantization", help="none, nf4 or int8. By default none, or nf4 if that does not fit.")
    parser.add_argument(
        "--gradient-checkpointing", choices=("on", "off"), help="By default off, or on if that does not fit."
    )
    parser.add_argument("--batch-size", type=int, help="Rows in a forward pass. By default as many as fit.")
    parser.add_argument("--global-batch-size", type=int, default=16, help="Rows in an optimizer step (%(default)s).")
    parser.add_argument("--max-length", type=int, default=512, help="Tokens in a row (%(default)s).")
    parser.add_argument("--r", type=int, default=16, help="Rank of LoRA on all linear layers (%(default)s).")
    parser.add_argument(
        "--optim", default="adamw_torch_fused", help="Optimizer, as in TrainingArguments (%(default)s)."
    )
    parser.add_argument(
        "--dtype",
        help="Dtype of weights that are not quantized. By default bfloat16; on the CPU without NF4, float32.",
    )
    parser.add_argument("--attn-implementation", help="eager, sdpa, ... By default the trainer's choice.")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (%(default)s).")
    parser.add_argument("--trust-remote-code", action="store_true", help="Allow the model's own code to run.")
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    settings = vars(parse(parser, words))
    checkpointing = settings.pop("gradient_checkpointing")

    from raft_peft.planning import plan_memory

    print(plan_memory(gradient_checkpointing=None if checkpointing is None else checkpointing == "on", **settings))
