"""What the options that TRL has against memory or time cost, and save, in training.

    python benchmarks/training_options.py
    python benchmarks/training_options.py --model google/gemma-2-2b --device cuda --batch_size 16

A RAFT step (forward and backward of LoRA) on batches of unlike length, with one option at a time. The figures are
ratios to the step without any: of the time in the same turn, the median and the range between the quartiles; of the
memory that a step takes beyond the model's own, in a process of its own each. Options that the device, or what is
installed, does not have are left out.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common.fresh_process import in_fresh_process, peak_growth
from common.prompts import like_stsb
from common.side_by_side import device_name, ratios, time_in_turn, write
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.integrations.liger import apply_liger_kernel

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer

BATCHES = 3
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding_free": {"padding_free": True},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing, reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "checkpointing, every second layer": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"every_n_layers": 2},
    },
    "checkpointing, padding_free": {"gradient_checkpointing": True, "padding_free": True},
    "torch_compile": {"torch_compile": True},
    "torch_compile, padding_free": {"torch_compile": True, "padding_free": True},
}
ON_AN_ACCELERATOR: dict[str, dict[str, Any]] = {
    "activation_offloading": {"activation_offloading": True},
    "checkpointing, offload": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"offload": True}},
    "Liger": {"use_liger_kernel": True},
    "Hub kernels": {"model_init_kwargs": {"use_kernels": True}},
}
PACKAGES = {"Liger": "liger_kernel", "Hub kernels": "kernels"}


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "eager or sdpa."})
    bf16: bool = field(default=False, metadata={"help": "Whether to run under bf16 autocast."})
    batch_size: int = field(default=8, metadata={"help": "Prompts in a batch."})
    turns: int = field(default=5, metadata={"help": "How often each way is timed."})
    ways: list[str] | None = field(default=None, metadata={"help": "Some of the ways alone. By default all."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    ways = options_of(args)
    seconds = time_in_turn({name: make_steps(args, name) for name in ways}, args.turns, args.device)
    memory = {name: in_fresh_process(measure, args, name) for name in ways}

    precision = "bf16 autocast" if args.bf16 else "float32"
    print(
        f"{args.model}, {precision}, {args.attn_implementation}, batch {args.batch_size}, {device_name(args.device)}\n"
    )
    print("| option | time | quartiles | memory |\n|---|---|---|---|")
    for name in ways:
        low, middle, high = ratios(seconds[name], seconds["plain"])
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {memory[name] / memory['plain']:.2f} |")
    write(args, {"device": device_name(args.device), "seconds": seconds, "bytes": memory})


def options_of(args: Arguments) -> dict[str, dict[str, Any]]:
    """The ways that can be measured here, by name; the plain one first."""
    ways = WAYS if args.device == "cpu" else WAYS | ON_AN_ACCELERATOR
    missing = {way for way, package in PACKAGES.items() if importlib.util.find_spec(package) is None}
    chosen = {"plain", *(args.ways or ways)} - missing
    return {name: options for name, options in ways.items() if name in chosen}


def make_steps(args: Arguments, way: str) -> Callable[[], None]:
    """A forward and a backward pass on each of the batches."""
    torch.manual_seed(0)
    options = {**WAYS, **ON_AN_ACCELERATOR}[way]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    init = {"attn_implementation": args.attn_implementation, **options.get("model_init_kwargs", {})}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, **init).to(args.device)
    trainer = RegressionAwareTrainer(
        model,
        RegressionAwareConfig(
            output_dir="benchmark-of-options",
            per_device_train_batch_size=args.batch_size,
            bf16=args.bf16,
            use_cpu=args.device == "cpu",
            report_to="none",
            save_strategy="no",
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
            **{
                "gradient_checkpointing": False,
                "padding_free": False,
                **{name: value for name, value in options.items() if name != "model_init_kwargs"},
            },
        ),
        grid=range(6),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": prompt, "label": 3.0} for prompt in prompts(args)]),
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )
    trainer.current_gradient_accumulation_steps = 1
    # `Trainer.train` does this before its first step, which is not called here.
    if trainer.args.use_liger_kernel:
        apply_liger_kernel(trainer.model, trainer.args.liger_kernel_config)
    if trainer.args.activation_checkpointing:
        settings = dict(trainer.args.activation_checkpointing_kwargs or {})
        layers = {name: settings.pop(name) for name in ("every_n_layers", "offload") if name in settings}
        trainer.model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings or None, **layers)
    trainer.model.train()
    prepared = trainer.accelerator.prepare(trainer.model)
    batches = list(trainer.get_train_dataloader())
    count = torch.tensor(args.batch_size, device=trainer.args.device)

    def steps() -> None:
        for batch in batches:
            trainer.training_step(prepared, dict(batch), count)
            prepared.zero_grad()

    return steps


def prompts(args: Arguments) -> list[str]:
    """As many as the batches take, of which each is longer than the one before."""
    drawn = like_stsb(BATCHES * args.batch_size)
    return [" ".join([prompt] * (1 + place // args.batch_size)) for place, prompt in enumerate(drawn)]


def measure(args: Arguments, way: str) -> int:
    """The bytes that the steps take beyond what is held before them, after one round to warm up."""
    steps = make_steps(args, way)
    steps()
    return peak_growth(steps, args.device)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
