"""The memory that `raft-peft plan` gives, against the peak of real training steps, on the CPU.

    python benchmarks/plan_against_peak.py
    python benchmarks/plan_against_peak.py --only 4 --output out.json

Each measurement is two optimizer steps of `RegressionAwareTrainer` in a process of its own. Measured is the peak of
the resident memory during the steps, less what is resident before the model is built; steps on its shape cut to two
layers come before, so that the libraries' code, compiled for each shape, and their workspaces are not counted. glibc
is told to give back what is freed at once, since what it would keep for later depends on the order of sizes. The plan
is made from the model's config in a process without weights.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common.fresh_process import in_fresh_process, resident, restart_peak

SMOLLM2, GEMMA3 = "build/models/HuggingFaceTB/SmolLM2-135M-Instruct", "build/models/google/gemma-3-270m"
LORA_RANK = 16


def case(model: str, batch: int, length: int, **options: Any) -> dict[str, Any]:
    return {
        "model": model,
        "batch_size": batch,
        "max_length": length,
        "quantization": "none",
        "gradient_checkpointing": False,
        "dtype": "float32",
        "bf16": False,
        "accumulation": 1,
        "attn_implementation": "sdpa",
        **options,
    }


NF4 = {"quantization": "nf4", "dtype": "bfloat16", "bf16": True}
CASES = [
    case(SMOLLM2, 1, 512),
    case(SMOLLM2, 4, 256),
    case(SMOLLM2, 16, 128, gradient_checkpointing=True),
    case(SMOLLM2, 4, 512, bf16=True),
    case(SMOLLM2, 2, 512, dtype="bfloat16", bf16=True),
    case(SMOLLM2, 4, 1024, gradient_checkpointing=True, bf16=True),
    case(SMOLLM2, 16, 128, **NF4),
    case(SMOLLM2, 2, 512, accumulation=2, **NF4),
    case(SMOLLM2, 2, 1024, gradient_checkpointing=True, **NF4),
    case(SMOLLM2, 4, 256, attn_implementation="eager", **NF4),
    case(GEMMA3, 4, 256),
    case(GEMMA3, 4, 256, bf16=True),
    case(GEMMA3, 1, 1024, **NF4),
    case(GEMMA3, 8, 256, gradient_checkpointing=True, **NF4),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="*", help="The numbers of the cases to run, from 0; all by default.")
    parser.add_argument("--output", help="A JSON file for the figures.")
    args = parser.parse_args()
    columns = ("model", "weights", "autocast", "attention", "checkpointing", "batch x length", "plan", "measured")
    print(as_row([*columns, "plan / measured"]), as_row(["---"] * (len(columns) + 1)), sep="\n")
    rows = []
    for index in range(len(CASES)) if args.only is None else args.only:
        settings = CASES[index]
        planned, measured = in_fresh_process(plan, settings), in_fresh_process(measure, settings)
        rows.append({**settings, "plan": planned, "measured": measured})
        batch = f"{settings['batch_size']} x {settings['max_length']}"
        cells = [
            Path(settings["model"]).name,
            settings["dtype"] if settings["quantization"] == "none" else settings["quantization"],
            "bf16" if settings["bf16"] else "none",
            settings["attn_implementation"],
            "on" if settings["gradient_checkpointing"] else "off",
            batch if settings["accumulation"] == 1 else f"{batch}, {settings['accumulation']} times",
            f"{planned / 1e6:.0f} MB",
            f"{measured / 1e6:.0f} MB",
            f"{planned / measured:.3f}",
        ]
        print(as_row(cells), flush=True)
    if args.output is not None:
        Path(args.output).write_text(json.dumps(rows, indent=2) + "\n")


def as_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plan(settings: dict[str, Any]) -> int:
    from raft_peft.planning import plan_memory

    accumulation = settings.pop("accumulation")
    batch = settings.pop("batch_size")
    planned = plan_memory(
        settings.pop("model"),
        batch_size=batch,
        global_batch_size=batch * accumulation,
        r=LORA_RANK,
        device="cpu",
        **settings,
    )
    return planned.total


def measure(settings: dict[str, Any]) -> int:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    shallow = AutoConfig.from_pretrained(settings["model"])
    shallow.num_hidden_layers = 2
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = shallow.layer_types[-2:]
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(shallow).save_pretrained(folder)
        train({**settings, "model": folder}, tokenizer, folder)
        restart_peak()
        before = resident("VmRSS")
        return train(settings, tokenizer, folder) - before


def train(settings: dict[str, Any], tokenizer: Any, folder: str) -> int:
    """Two optimizer steps; the peak of the resident memory during them."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig

    from raft_peft import RegressionAwareConfig, RegressionAwareTrainer
    from raft_peft.training.quantization import qlora

    torch.manual_seed(0)
    batch_size, count = settings["batch_size"], settings["batch_size"] * settings["accumulation"]
    # One row of a batch is shorter, so that there is padding, as there usually is.
    lengths = [
        settings["max_length"] - (8 if row % batch_size == 0 and batch_size > 1 else 2) for row in range(2 * count)
    ]
    rows = [
        {
            "input_ids": [*torch.randint(300, 40_000, (length,)).tolist(), *tokenizer(" the").input_ids[-1:]],
            "label": 2.0,
        }
        for length in lengths
    ]
    lora = {"peft_config": LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")}
    trainer = RegressionAwareTrainer(
        settings["model"],
        RegressionAwareConfig(
            folder,
            max_steps=2,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=settings["accumulation"],
            gradient_checkpointing=settings["gradient_checkpointing"],
            padding_free=False,
            max_length=settings["max_length"],
            bf16=settings["bf16"],
            use_cpu=True,
            model_init_kwargs={name: settings[name] for name in ("dtype", "attn_implementation")},
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        grid={1: "1", 2: "2", 3: "3", 4: "4", 5: "5"},
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        **(qlora(LORA_RANK) if settings["quantization"] == "nf4" else lora),
    )
    restart_peak()
    trainer.train()
    return resident("VmHWM")


if __name__ == "__main__":
    main()
