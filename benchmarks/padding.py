"""What rows of different length cost in training: padded, sorted by length, laid end to end.

    python benchmarks/padding.py
    python benchmarks/padding.py --kind judge --batches 1 --turns 3
    python benchmarks/padding.py --kind judge --batches 1 --turns 3 --batch_size 32 --gradient_checkpointing
    python benchmarks/padding.py --kind stsb --dataset_path FOLDER

A RAFT step (forward and backward of LoRA) on batches of prompts, drawn at random or of like length: prompts as long
as those of STS-B, a judge's with a rubric of about 500 tokens, or STS-B itself. The figures are the time for each
token of the prompts, as ratios to random batches with padding in the same turn: the median, and the range between the
quartiles.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from common.prompts import like_a_judges, like_stsb
from common.raft_step import raft_step
from common.side_by_side import device_name, make_batches, ratios, time_in_turn, write
from transformers import AutoTokenizer, HfArgumentParser

from raft_peft import NumberGrid
from raft_peft.tasks.stsb import GRID, load_stsb

# So many batches are drawn for each that is timed, so that lengths differ enough for sorting to matter.
_DRAWN = 5


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    kind: str = field(
        default="like_stsb", metadata={"help": "Of the prompts.", "choices": ["like_stsb", "judge", "stsb"]}
    )
    dataset_path: str | None = field(default=None, metadata={"help": "Folder of STS-B. By default the Hub."})
    attn_implementation: str = field(default="eager", metadata={"help": "eager or sdpa."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    bf16: bool = field(default=True, metadata={"help": "Whether to run under bf16 autocast."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Whether layers are computed twice."})
    batch_size: int = field(default=16, metadata={"help": "Prompts in a batch."})
    batches: int = field(default=4, metadata={"help": "How many batches of each kind are timed."})
    turns: int = field(default=7, metadata={"help": "How often each way is timed."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = make_rows(args)
    grid = NumberGrid(GRID)
    by_length = make_batches(tokenizer, grid, rows, args.batch_size, by_length=True)
    batches = {
        "random": make_batches(tokenizer, grid, rows, args.batch_size)[: args.batches],
        "of like length": by_length[_DRAWN // 2 :: _DRAWN],
    }
    steps = {
        name: raft_step(
            args,
            tokenizer,
            grid,
            padding_free=name == "padding_free",
            gradient_checkpointing=args.gradient_checkpointing,
        )
        for name in ("padded", "padding_free")
    }
    seconds = time_in_turn(
        {
            f"{kind}, {layout}": partial(run_all, step, of_kind)
            for kind, of_kind in batches.items()
            for layout, step in steps.items()
        },
        args.turns,
        args.device,
    )
    tokens = {kind: sum(int(batch["attention_mask"].sum()) for batch in of_kind) for kind, of_kind in batches.items()}
    a_token = {name: [time / tokens[name.partition(", ")[0]] for time in times] for name, times in seconds.items()}

    precision, device = "bf16 autocast" if args.bf16 else "float32", device_name(args.device)
    checkpointing = "checkpointing, " if args.gradient_checkpointing else ""
    print(f"{args.model}, {precision}, {args.attn_implementation}, {checkpointing}batch {args.batch_size}, {device}\n")
    print("| batches | time a token | quartiles | speed |\n|---|---|---|---|")
    for name, times in a_token.items():
        low, middle, high = ratios(times, a_token["random, padded"])
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {1 / middle:.2f} x |")
    write(args, {"device": device, "seconds_a_token": a_token})


def make_rows(args: Arguments) -> list[dict]:
    count = _DRAWN * args.batches * args.batch_size
    if args.kind == "stsb":
        return list(load_stsb(args.dataset_path)["train"].shuffle(seed=0).select(range(count)))
    return [{"prompt": prompt} for prompt in (like_stsb if args.kind == "like_stsb" else like_a_judges)(count)]


def run_all(step: Callable[[dict[str, torch.Tensor]], None], batches: list[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        step(batch)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
