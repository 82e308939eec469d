"""Where the time of a training step on the CPU goes, by parts of the model.

    OMP_NUM_THREADS=1 python benchmarks/step_profile.py --data STSB
    OMP_NUM_THREADS=1 python benchmarks/step_profile.py --data STSB --lora_dropout 0

The steps are those of `examples/finetune_stsb.py` with its defaults. `--data` is a folder of STS-B's `train.csv` and
`dev.csv`. `torch.profiler` gives the time of each operation; one of the backward pass counts for the part of the model
whose forward operation it belongs to. Processor time is measured without the profiler before, by threads.
"""

import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import HfArgumentParser, TrainerCallback

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer
from raft_peft.tasks.stsb import load_stsb

WARM_UP = 3
MARK = "part: "


@dataclass
class Arguments:
    data: str = field(metadata={"help": "Folder of STS-B."})
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "0.05 is the example's."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Off in the example, if memory is enough."})
    steps: int = field(default=6, metadata={"help": "Steps of each measurement."})


def main(args: Arguments) -> None:
    rows = load_stsb(args.data, seed=42)["train"].shuffle(seed=42).select(range(8 * (WARM_UP + 2 * args.steps)))
    with tempfile.TemporaryDirectory() as folder:
        settings = RegressionAwareConfig(
            folder,
            learning_rate=1e-3,
            gradient_checkpointing=args.gradient_checkpointing,
            num_train_epochs=1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=args.lora_dropout, target_modules="all-linear")
        trainer = RegressionAwareTrainer(args.model, settings, grid=range(1, 6), train_dataset=rows, peft_config=lora)
        measured = Measurement(args.steps)
        trainer.add_callback(measured)
        trainer.train()
    print(f"{torch.get_num_threads()} threads; a step without the profiler, in seconds of processor time by threads:")
    print(" ".join(f"{seconds:.2f}" for seconds in measured.of_threads if seconds >= 0.01))
    print("\n| part | share | forward | backward |\n|---|---|---|---|")
    forward, backward = shares(measured.profile)
    for part, share in (forward + backward).most_common():
        print(f"| {part} | {share:.1%} | {forward[part]:.1%} | {backward[part]:.1%} |")


class Measurement(TrainerCallback):
    """Measures some steps without the profiler, and as many with it."""

    def __init__(self, steps: int):
        self._steps = steps
        self._before: dict[str, float] = {}
        self.of_threads: list[float] = []
        self.profile = profile(activities=[ProfilerActivity.CPU])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self._before = thread_times()
        elif state.global_step == WARM_UP + self._steps:
            now = thread_times()
            self.of_threads = sorted(
                ((now[one] - self._before.get(one, 0)) / self._steps for one in now), reverse=True
            )
            mark_parts(kwargs["model"])
            self.profile.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.profile.stop()


def thread_times() -> dict[str, float]:
    """The processor time of each thread so far, in seconds."""
    times = {}
    for thread in Path("/proc/self/task").iterdir():
        figures = (thread / "stat").read_text().rsplit(")", 1)[1].split()
        times[thread.name] = (int(figures[11]) + int(figures[12])) / os.sysconf("SC_CLK_TCK")
    return times


def part_of(name: str, module: torch.nn.Module) -> str | None:
    """The part of the model that a module is; None where it is a part of another."""
    kind, last = type(module).__name__, name.rsplit(".", 1)[-1]
    if ".lora_dropout." in name:
        return "dropout of LoRA"
    if ".lora_A." in name or ".lora_B." in name:
        return "LoRA's own matrices"
    if last == "base_layer":
        return "attention's matrices" if "attn" in name else "the MLPs' matrices"
    if hasattr(module, "base_layer"):
        return "scaling LoRA's output and adding it"
    if last == "lm_head":
        return "lm_head"
    ends = {"Attention": "attention itself", "MLP": "activation", "Norm": "norms", "DecoderLayer": "residuals"}
    return next((part for end, part in ends.items() if kind.endswith(end)), None)


def mark_parts(model: torch.nn.Module) -> None:
    """Let the profiler see in which part of the model an operation is."""
    for name, module in model.named_modules():
        part = part_of(name, module)
        if part is None:
            continue
        open_marks: list[Any] = []

        def enter(module: Any, inputs: Any, part: str = part, marks: list[Any] = open_marks) -> None:
            marks.append(record_function(MARK + part))
            marks[-1].__enter__()

        def leave(module: Any, inputs: Any, output: Any, marks: list[Any] = open_marks) -> None:
            marks.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


def shares(measured: profile) -> tuple[Counter[str], Counter[str]]:
    """The share of each part in the time of all operations, of the forward and of the backward pass."""
    events = measured.events()
    part_of_forward = {
        event.sequence_nr: part for event in events if event.sequence_nr >= 0 and (part := marked(event)) is not None
    }
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()
    for event in events:
        node = enclosing(event, "autograd::engine::evaluate_function")
        if node is None:
            forward[marked(event) or optimizer(event)] += event.self_cpu_time_total
        else:
            backward[part_of_forward.get(node.sequence_nr, "the rest")] += event.self_cpu_time_total
    whole = sum(forward.values()) + sum(backward.values())
    return tuple(Counter({part: time / whole for part, time in times.items()}) for times in (forward, backward))


def enclosing(event: Any, start: str) -> Any:
    """The innermost event around an event, or itself, whose name begins so; None where there is none."""
    while event is not None and not event.name.startswith(start):
        event = event.cpu_parent
    return event


def marked(event: Any) -> str | None:
    found = enclosing(event, MARK)
    return None if found is None else found.name.removeprefix(MARK)


def optimizer(event: Any) -> str:
    return "the rest" if enclosing(event, "Optimizer.") is None else "AdamW"


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
