"""What rows of different length cost in training: padded, sorted by length, laid end to end.

    python benchmarks/padding.py
    python benchmarks/padding.py --dataset_path FOLDER --attn_implementation eager --bf16 true

A RAFT step (forward and backward of LoRA) on batches of STS-B, drawn at random or of like length. The figures are the
time for each token of the prompts, as ratios to random batches with padding in the same turn: the median, and the
range between the quartiles.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from side_by_side import make_batches, ratios, time_in_turn, write
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from raft_peft import NumberGrid
from raft_peft.methods import MethodSettings
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
    grid = NumberGrid(GRID)
    batches = {
        "random": make_batches(tokenizer, grid, rows, args.batch_size)[:BATCHES],
        "of like length": make_batches(tokenizer, grid, rows, args.batch_size, by_length=True)[2 :: 20 // BATCHES],
    }
    steps = {
        "padded": make_step(args, tokenizer, padding_free=False),
        "padding_free": make_step(args, tokenizer, padding_free=True),
    }
    seconds = time_in_turn(
        {
            f"{kind}, {layout}": partial(run_all, step, of_kind)
            for kind, of_kind in batches.items()
            for layout, step in steps.items()
        },
        args.turns,
    )
    tokens = {kind: sum(int(batch["attention_mask"].sum()) for batch in of_kind) for kind, of_kind in batches.items()}
    a_token = {name: [time / tokens[name.partition(", ")[0]] for time in times] for name, times in seconds.items()}

    precision, threads = "bf16 autocast" if args.bf16 else "float32", torch.get_num_threads()
    print(f"{args.model}, {precision}, {args.attn_implementation}, batch {args.batch_size}, CPU, {threads} threads\n")
    print("| batches | time a token | quartiles | speed |\n|---|---|---|---|")
    for name, times in a_token.items():
        low, middle, high = ratios(times, a_token["random, padded"])
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {1 / middle:.2f} x |")
    write(args.output, {"settings": vars(args), "threads": threads, "seconds_a_token": a_token})


def run_all(step: Callable[[dict[str, torch.Tensor]], None], batches: list[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        step(batch)


def make_step(args: Arguments, tokenizer, *, padding_free: bool) -> Callable[[dict[str, torch.Tensor]], None]:
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
