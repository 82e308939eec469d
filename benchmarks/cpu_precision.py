"""What precision and attention are fastest on this CPU, in training and in prediction.

    python benchmarks/cpu_precision.py

A RAFT step (forward and backward of LoRA), and a forward pass alone, on prompts of the length of STS-B's. Times are
ratios to float32 with sdpa, transformers' default, in the same turn.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common.prompts import like_stsb
from common.side_by_side import device_name, make_batches, ratios, time_in_turn, write
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from raft_peft import NumberGrid
from raft_peft.methods import MethodSettings
from raft_peft.methods.readout import Readout

# The dtype of the weights, and whether the products are taken under bf16 autocast.
PRECISIONS = {
    "float32": (torch.float32, False),
    "float32, bf16 autocast": (torch.float32, True),
    "bf16, autocast": (torch.bfloat16, True),
}


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    batch_size: int = field(default=8, metadata={"help": "Prompts in a batch."})
    turns: int = field(default=5, metadata={"help": "How often each way is timed."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    grid = NumberGrid(range(6))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = [{"prompt": prompt} for prompt in like_stsb(args.batch_size)]
    (batch,) = make_batches(tokenizer, grid, prompts, args.batch_size)
    training: dict[str, Callable[[], Any]] = {}
    prediction: dict[str, Callable[[], Any]] = {}
    for precision, (dtype, autocast) in PRECISIONS.items():
        for attention in ("sdpa", "eager"):
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation=attention)
            model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
            readout = Readout(model, tokenizer, grid, MethodSettings(), grid_token_ids=None)
            step = make_step(readout, model, batch, autocast=autocast)
            training[f"{precision}, {attention}"] = step
            prediction[f"{precision}, {attention}"] = torch.no_grad()(step)
    print(f"{args.model}, batch {args.batch_size}, {device_name('cpu')}\n")
    print("| pass | weights, attention | time / float32, sdpa | quartiles |\n|---|---|---|---|")
    figures = []
    for name, ways in (("training step", training), ("prediction", prediction)):
        seconds = time_in_turn(ways, args.turns)
        for way, times in seconds.items():
            low, middle, high = ratios(times, seconds["float32, sdpa"])
            figures.append({"pass": name, "way": way, "time": middle, "quartiles": [low, high]})
            figures[-1]["seconds"] = statistics.median(times)
            print(f"| {name} | {way} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)
    write(args, {"device": device_name("cpu"), "figures": figures})


def make_step(readout: Readout, model: Any, batch: dict, *, autocast: bool) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = (readout.expectation(readout.read_head(model, batch).output) - 3).square().mean()
        if loss.requires_grad:
            loss.backward()
            model.zero_grad()

    return step


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
