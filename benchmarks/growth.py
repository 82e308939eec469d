"""How the cost of a RAFT step grows with the batch, the length, the vocabulary and the grid.

    python benchmarks/growth.py
    python benchmarks/growth.py --model google/gemma-2-2b --device cuda

Forward and backward of LoRA. For each quantity the exponent of the power law that fits the medians best is given: 1 is
linear growth, 0 none. The vocabulary is that of models of the same layers with random weights; the bare backbone does
not know it.
"""

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from common.prompts import like_stsb
from common.side_by_side import device_name, make_batches, time_in_turn, write
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from raft_peft import NumberGrid
from raft_peft.methods import MethodSettings
from raft_peft.methods.readout import Readout


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    device: str = field(default="cpu", metadata={"help": "Where to run."})
    batches: list[int] = field(default_factory=lambda: [2, 4, 8, 16], metadata={"help": "Prompts of 64 tokens."})
    lengths: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512], metadata={"help": "Of 4 prompts."})
    vocabularies: list[int] = field(
        default_factory=lambda: [16_384, 65_536, 262_144], metadata={"help": "For 8 prompts of 64 tokens."}
    )
    numbers: list[int] = field(
        default_factory=lambda: [11, 101, 201, 501], metadata={"help": "Of a grid of several tokens, for 4 prompts."}
    )
    turns: int = field(default=3, metadata={"help": "How often each point is timed."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    step = make_step(with_lora(model), tokenizer, NumberGrid(range(6)), args.device)
    curves: dict[str, dict[int, Callable[[], None]]] = {
        "batch": {size: step(random_batch(size, 64)) for size in args.batches},
        "length": {length: step(random_batch(4, length)) for length in args.lengths},
        "vocabulary": {size: step_of_vocabulary(args, tokenizer, size) for size in args.vocabularies},
        "grid": {count: step_of_grid(model, tokenizer, count, args.device) for count in args.numbers},
    }
    print(f"{args.model}, float32, LoRA, {device_name(args.device)}\n")
    print("| quantity | from | to | time / the first | exponent |\n|---|---|---|---|---|")
    figures = []
    for quantity, steps in curves.items():
        seconds = time_in_turn({str(point): run for point, run in steps.items()}, args.turns, args.device)
        medians = [statistics.median(times) for times in seconds.values()]
        exponent = fitted_exponent(list(steps), medians)
        figures.append({"quantity": quantity, "points": list(steps), "seconds": medians, "exponent": exponent})
        growth = ", ".join(f"{time / medians[0]:.2f}" for time in medians)
        print(f"| {quantity} | {min(steps):,} | {max(steps):,} | {growth} | {exponent:.2f} |", flush=True)
    write(args, {"device": device_name(args.device), "figures": figures})


def fitted_exponent(points: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of the power law through the points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(points), np.log(values), 1)[0])


def with_lora(model):
    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def make_step(model, tokenizer, grid: NumberGrid, device: str) -> Callable[[dict], Callable[[], None]]:
    readout = Readout(model, tokenizer, grid, MethodSettings(), grid_token_ids=None)

    def step(batch: dict[str, torch.Tensor]) -> Callable[[], None]:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}

        def run() -> None:
            (readout.expectation(readout.read_head(model, batch).output) - 3).square().mean().backward()
            model.zero_grad()

        return run

    return step


def random_batch(size: int, length: int) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(100, 10_000, (size, length), generator=torch.Generator().manual_seed(0))
    grid_token_ids = torch.arange(20, 26).repeat(size, 1)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "grid_token_ids": grid_token_ids}


def step_of_vocabulary(args: Arguments, tokenizer, size: int) -> Callable[[], None]:
    config = copy.deepcopy(AutoConfig.from_pretrained(args.model))
    config.vocab_size, config.num_hidden_layers = size, 6
    model = with_lora(AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(args.device))
    return make_step(model, tokenizer, NumberGrid(range(6)), args.device)(random_batch(8, 64))


def step_of_grid(model, tokenizer, count: int, device: str) -> Callable[[], None]:
    grid = NumberGrid(range(count))
    (batch,) = make_batches(tokenizer, grid, [{"prompt": prompt} for prompt in like_stsb(4)], 4)
    return make_step(model, tokenizer, grid, device)(batch)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
