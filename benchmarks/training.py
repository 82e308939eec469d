"""What a training step costs: RAFT beside the bare backbone, a head, full logits and TRL's SFT.

    python benchmarks/training.py
    python benchmarks/training.py --model google/gemma-2-2b --device cuda --attn_implementation sdpa

Forward and backward of LoRA by each trainer's own `training_step`, on prompts of the length of STS-B's. Times are
ratios to the bare backbone in the same turn. Memory is what a step takes beyond the model, in a process of its own.
"""

import statistics
from dataclasses import dataclass, field

from common.fresh_process import in_fresh_process, peak_growth
from common.side_by_side import device_name, ratios, time_in_turn, write
from common.training_ways import WAYS, StepSettings, make_step
from transformers import HfArgumentParser


@dataclass
class Arguments(StepSettings):
    ways: list[str] = field(default_factory=lambda: list(WAYS), metadata={"help": "What to measure."})
    turns: int = field(default=7, metadata={"help": "How often each way is timed."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    memory = {way: in_fresh_process(step_memory, way, args) for way in args.ways}
    seconds = time_in_turn({way: make_step(way, args) for way in args.ways}, args.turns, args.device)
    floor = args.ways[0]
    print(f"{args.model}, LoRA, batch {args.batch_size}, bf16 {args.bf16}, {device_name(args.device)}\n")
    print(f"| way | time / {floor} | quartiles | memory of a step | / {floor} |\n|---|---|---|---|---|")
    figures = []
    for way, times in seconds.items():
        low, middle, high = ratios(times, seconds[floor])
        share = memory[way] / memory[floor]
        figures.append({"way": way, "time": middle, "quartiles": [low, high], "memory": share, "bytes": memory[way]})
        figures[-1]["seconds"] = statistics.median(times)
        print(f"| {way} | {middle:.2f} | {low:.2f} to {high:.2f} | {memory[way] / 1e6:.0f} MB | {share:.2f} |")
    write(args, {"device": device_name(args.device), "figures": figures})


def step_memory(way: str, settings: StepSettings) -> int:
    step = make_step(way, settings)
    step()
    return peak_growth(step, settings.device)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
