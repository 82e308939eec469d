"""What rows of different length cost in training: padded, sorted by length, laid end to end.

    python benchmarks/padding.py
    python benchmarks/padding.py --dataset_path FOLDER --attn_implementation eager --bf16 true

A RAFT step (forward and backward of LoRA) on batches of STS-B, drawn at random or of like length. Every way is timed
in turn, again and again in one process. The figures are the time for each token of the prompts, as ratios to random
batches with padding in the same turn: the median, and the range between the quartiles.
"""

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from raft_peft import NumberGrid
from raft_peft.adapter import installed_versions
from raft_peft.collate import RegressionCollator
from raft_peft.methods import MethodSettings
from raft_peft.prompts import PromptEncoder
from raft_peft.readout import Readout
from raft_peft.tasks.stsb import GRID, load_stsb

BATCHES = 4


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    dataset_path: str | None = field(default=None, metadata={"help": "Folder of STS-B. By default the Hub."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "eager or sdpa."})
    bf16: bool = field(default=False, metadata={"help": "Whether to run under bf16 autocast."})
    batch_size: int = field(default=16, metadata={"help": "Prompts in a batch."})
    turns: int = field(default=7, metadata={"help": "How often each way is timed."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = load_stsb(args.dataset_path)["train"].shuffle(seed=0).select(range(20 * args.batch_size))
    encoded = PromptEncoder(tokenizer, NumberGrid(GRID)).encode(list(rows))
    by_length = sorted(encoded, key=lambda one: len(one.input_ids))
    random_batches = batches(encoded, args.batch_size)[:BATCHES]
    like_batches = batches(by_length, args.batch_size)[2::5]

    steps = {padding_free: make_step(args, tokenizer, padding_free) for padding_free in (False, True)}
    ways = {
        "random, padded": (steps[False], random_batches),
        "random, padding_free": (steps[True], random_batches),
        "of like length, padded": (steps[False], like_batches),
        "of like length, padding_free": (steps[True], like_batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.turns + 1):
        for name, (step, of_way) in ways.items():
            started = time.perf_counter()
            for batch in of_way:
                step(batch)
            if turn > 0:  # the first warms up
                tokens = sum(int(batch["attention_mask"].sum()) for batch in of_way)
                seconds[name].append((time.perf_counter() - started) / tokens)

    precision = "bf16 autocast" if args.bf16 else "float32"
    threads = torch.get_num_threads()
    print(f"{args.model}, {precision}, {args.attn_implementation}, batch {args.batch_size}, CPU, {threads} threads\n")
    print("| batches | time a token | quartiles | speed |\n|---|---|---|---|")
    figures = []
    for name, times in seconds.items():
        ratios = [one / other for one, other in zip(times, seconds["random, padded"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        figures.append({"batches": name, "ratio": middle, "quartiles": [low, high], "seconds_a_token": times})
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {1 / middle:.2f} x |")
    if args.output is not None:
        report = {"settings": vars(args), "threads": threads, "versions": installed_versions(), "figures": figures}
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n")


def batches(encoded: list, size: int) -> list[dict[str, torch.Tensor]]:
    collate = RegressionCollator(pad_token_id=0)
    rows = [{"input_ids": one.input_ids, "grid_token_ids": one.grid_token_ids} for one in encoded]
    return [collate(rows[start : start + size]) for start in range(0, len(rows), size)]


def make_step(args: Arguments, tokenizer, padding_free: bool):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attn_implementation
    )
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    readout = Readout(
        model, tokenizer, NumberGrid(GRID), MethodSettings(), grid_token_ids=None, padding_free=padding_free
    )

    def step(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            output = readout.read_head(model, batch).output
        (readout.expectation(output) - 3).square().mean().backward()
        model.zero_grad()

    return step


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
