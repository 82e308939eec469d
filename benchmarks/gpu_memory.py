"""What QLoRA on Gemma 2 takes, by RAFT and by its alternatives: peak memory, speed, model FLOP utilisation.

    python benchmarks/gpu_memory.py --size 27b --output 27b.json
    python benchmarks/gpu_memory.py --size 2b --layers 4 --length 64 --steps 3 --device cpu

Gemma 2 of 2, 9 or 27 billion weights, drawn at random and quantized to NF4 layer by layer, so that neither a hub nor
room for the dense model is needed. LoRA on all linear layers, bf16 autocast, gradient checkpointing. Each way runs in
a process of its own.

Memory, in GB of 1e9 bytes, counts from before the model is built. On a GPU it is what PyTorch allocated and reserved
at the peak, without the CUDA context; on the CPU it is the growth of the resident memory. The time of a step is the
median over all but the first.

Model FLOP utilisation is the model FLOPs of a step, over its time and the device's peak. A step of `length` tokens a
row takes, for each row,

    length * (4 * frozen + 6 * adapter + 3 * attention) + positions * 4 * vocabulary * hidden

FLOPs: twice the weights of the quantized matrices forward, and twice for the gradient of their inputs, while their
own is not taken; six times the adapter's weights; attention to `span` tokens is 4 * heads * head_dim * span a token
and layer, forward, and twice that backward, where the span is the length, or the window where that is shorter, and
causality is not deducted; the output over the vocabulary at the positions that the loss reads. Layers that gradient
checkpointing computes again, dequantization, and logits that no loss reads do not count.
"""

import math
import re
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.nn import Linear4bit
from common.fresh_process import in_fresh_process, resident
from common.random_weights import random_quantized
from common.side_by_side import device_name, write
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer
from raft_peft.forward.cpu_precision import cpu_multiplies_bf16
from raft_peft.planning import plan_memory
from raft_peft.training.quantization import qlora

SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 1000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
    },
    "2b": {
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "9b": {
        "hidden_size": 3584,
        "num_hidden_layers": 42,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "27b": {
        "hidden_size": 4608,
        "num_hidden_layers": 46,
        "intermediate_size": 36864,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
}
# RAFT is to stay under these GB at batch 1, length 512, with gradient checkpointing.
AIMS = {"2b": 6, "9b": 12, "27b": 24}
WAYS = {
    "raft": "RAFT",
    "head": "head on the last hidden state",
    "sft": "SFT, TRL's fused logits",
    "sft_all_logits": "SFT, logits of all positions",
}
# The positions of a row whose logits the loss reads: the final one; none; the completion's and the end's.
LOGIT_POSITIONS = {"raft": 1, "head": 0, "sft": 2, "sft_all_logits": 2}
# Dense bf16 of the data sheets. The first name that stands as a word in the device's counts.
PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
}


@dataclass
class Arguments:
    size: str = field(default="2b", metadata={"help": "Of Gemma 2.", "choices": list(SIZES)})
    layers: int | None = field(default=None, metadata={"help": "Keep so many layers. By default all."})
    ways: list[str] = field(
        default_factory=lambda: list(WAYS), metadata={"help": "What to measure.", "choices": list(WAYS)}
    )
    batch_size: int = field(default=1, metadata={"help": "Rows in a batch."})
    length: int = field(default=512, metadata={"help": "Tokens in a row."})
    steps: int = field(default=6, metadata={"help": "Steps of training, of which the first is not timed."})
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Whether to compute the layers again in the backward pass."}
    )
    optim: str = field(default="adamw_torch", metadata={"help": "The optimizer, by transformers' name."})
    attn_implementation: str = field(default="eager", metadata={"help": "eager or sdpa."})
    device: str = field(
        default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cuda or cpu."}
    )
    peak_tflops: float | None = field(
        default=None,
        metadata={
            "help": "Of the device in bf16, in 1e12 a second. By default of a table, or that of a large matmul."
        },
    )
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    if args.steps < 2:
        raise ValueError("The first step is not timed. Set --steps to 2 or more.")
    planned = planned_gb(args)
    figures = [in_fresh_process(measure, args, way) for way in args.ways]

    layers = args.layers or SIZES[args.size]["num_hidden_layers"]
    print(
        f"Gemma 2 {args.size}, {layers} layers, random weights in NF4, LoRA, batch {args.batch_size} x {args.length} "
        f"tokens, gradient checkpointing {'on' if args.gradient_checkpointing else 'off'}, {args.optim}, "
        f"{figures[0]['device']}, {figures[0]['peak_tflops']:.3g} TFLOP/s ({figures[0]['peak_from']})\n"
    )
    print(
        "| way | weights, GB | peak, GB | reserved, GB | seconds a step | tokens a second | model FLOP utilisation |"
    )
    print("|---|---|---|---|---|---|---|")
    for one in figures:
        reserved = "" if one["reserved_gb"] is None else f"{one['reserved_gb']:.2f}"
        memory = f"| {WAYS[one['way']]} | {one['weights_gb']:.2f} | {one['peak_gb']:.2f} | {reserved} |"
        if one["out_of_memory"]:
            print(memory, "out of memory | | |")
        else:
            speed = f"{one['seconds']:.3g} | {one['tokens_a_second']:.0f} | {one['utilisation']:.1%}"
            print(memory, speed, "|")
    if planned is not None:
        print(f"\nPlanned by `raft-peft plan` for RAFT, on a GPU with the CUDA context: {planned:.2f} GB.")
    aim = _aim(args, figures)
    if aim is not None:
        print(f"\n{aim}")
    libraries = {"bitsandbytes": bitsandbytes.__version__, "cuda": torch.version.cuda}
    write(args, {"libraries": libraries, "planned_gb": planned, "figures": figures})


def _aim(args: Arguments, figures: list[dict[str, Any]]) -> str | None:
    """Whether the aim is met, where the run is of the size that it is set for."""
    full_size = args.layers is None and args.size in AIMS
    if not (full_size and args.batch_size == 1 and args.length == 512 and args.gradient_checkpointing):
        return None
    raft = next((one for one in figures if one["way"] == "raft"), None)
    if raft is None:
        return None
    taken, kind = (raft["peak_gb"], "resident") if raft["reserved_gb"] is None else (raft["reserved_gb"], "reserved")
    met = taken < AIMS[args.size] and not raft["out_of_memory"]
    return f"Aim of {args.size}: RAFT under {AIMS[args.size]} GB. {'Met' if met else 'Missed'}: {taken:.2f} GB {kind}."


def be_silent() -> None:
    """Leave the output to the table."""
    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    disable_progress_bars()


def measure(args: Arguments, way: str) -> dict[str, Any]:
    """The figures of one way, measured in this process."""
    be_silent()
    memory = Memory(args.device)
    set_seed(0)
    started = time.perf_counter()
    model = random_quantized(
        make_config(args, way),
        AutoModelForSequenceClassification if way == "head" else AutoModelForCausalLM,
        qlora()["quantization_config"],
        device=args.device,
        attn_implementation=args.attn_implementation,
    )
    figures: dict[str, Any] = {
        "way": way,
        "device": device_name(args.device),
        "building_seconds": time.perf_counter() - started,
        "weights_gb": memory.held(),
        "building_peak_gb": memory.peak(),
        "out_of_memory": False,
    }
    clock = Clock(args.device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(args, way, model, folder)
            trainer.add_callback(clock)
            trainer.remove_callback(PrinterCallback)
            figures["loss"] = trainer.train().training_loss
    except torch.OutOfMemoryError:
        figures["out_of_memory"] = True
    figures |= {"peak_gb": memory.peak(), "reserved_gb": memory.reserved()}
    figures["peak_tflops"], figures["peak_from"] = peak_tflops(args)
    if figures["out_of_memory"]:
        return figures
    if not math.isfinite(figures["loss"]):
        raise RuntimeError(f"The loss of {WAYS[way]} is {figures['loss']}.")
    flops = args.batch_size * model_flops(trainer.model, length=args.length, logit_positions=LOGIT_POSITIONS[way])
    seconds = statistics.median(clock.seconds)
    return figures | {
        "seconds_a_step": clock.seconds,
        "seconds": seconds,
        "tokens_a_second": args.batch_size * args.length / seconds,
        "model_tflop_a_step": flops / 1e12,
        "utilisation": flops / 1e12 / seconds / figures["peak_tflops"],
    }


def make_config(args: Arguments, way: str) -> Gemma2Config:
    """Gemma 2 as it was released, in this size."""
    shape = SIZES[args.size]
    if args.layers is not None:
        shape = {**shape, "num_hidden_layers": args.layers}
    labels = {"num_labels": 1} if way == "head" else {}
    common = {"vocab_size": 256000, "sliding_window": 4096, "tie_word_embeddings": True}
    return Gemma2Config(
        **{**common, **shape},
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        name_or_path=f"gemma-2-{args.size}-random",
        **labels,
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words and digits, each of them one token, with Gemma's ids for the special tokens."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *map(str, range(10)), *(f"word{index}" for index in range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def make_trainer(args: Arguments, way: str, model: PreTrainedModel, folder: str) -> Trainer:
    """A trainer whose rows are `args.length` tokens, the completion and the end of a text included."""
    tokenizer = make_tokenizer()
    rows = args.batch_size * args.steps
    prompt = " ".join(f"word{index % 100}" for index in range(args.length - (2 if way.startswith("sft") else 0)))
    digits = [str(1 + row % 5) for row in range(rows)]
    options: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch_size,
        "gradient_checkpointing": args.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if args.gradient_checkpointing else None,
        "optim": args.optim,
        "bf16": True,
        "use_cpu": args.device == "cpu",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if way == "raft":
        return RegressionAwareTrainer(
            model,
            RegressionAwareConfig(max_length=args.length, padding_free=False, **options),
            grid=[1, 2, 3, 4, 5],
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [prompt] * rows, "label": [float(digit) for digit in digits]}),
            peft_config=qlora()["peft_config"],
        )
    if way == "sft":
        return SFTTrainer(
            model,
            SFTConfig(max_length=args.length, **options),
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict(
                {"prompt": [prompt] * rows, "completion": [f" {digit}" for digit in digits]}
            ),
            peft_config=qlora()["peft_config"],
        )
    ids = tokenizer(prompt)["input_ids"]
    if way == "head":
        dataset = {"input_ids": [ids] * rows, "labels": [float(digit) for digit in digits]}
        adapter = qlora(task_type="SEQ_CLS")["peft_config"]
    else:
        ends = [[*tokenizer(digit)["input_ids"], tokenizer.eos_token_id] for digit in digits]
        dataset = {"input_ids": [ids + end for end in ends], "labels": [[-100] * len(ids) + end for end in ends]}
        adapter = qlora()["peft_config"]
    return Trainer(
        get_peft_model(model, adapter),
        TrainingArguments(**options),
        train_dataset=Dataset.from_dict(dataset | {"attention_mask": [[1] * args.length] * rows}),
        data_collator=default_data_collator,
    )


def model_flops(model: Any, *, length: int, logit_positions: int) -> int:
    """The model FLOPs of a training step, for one row; the formula stands at the top of this file."""
    config = model.config.get_text_config()
    linear = (module for module in model.modules() if isinstance(module, Linear4bit))
    frozen = sum(module.in_features * module.out_features for module in linear)
    adapter = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    spans = [min(length, config.sliding_window) if "sliding" in kind else length for kind in config.layer_types]
    attention = 4 * config.num_attention_heads * config.head_dim * sum(spans)
    output = logit_positions * 4 * config.vocab_size * config.hidden_size
    return length * (4 * frozen + 6 * adapter + 3 * attention) + output


def planned_gb(args: Arguments) -> float | None:
    """The peak that `plan_memory` foresees for RAFT; None for settings that it does not know."""
    try:
        plan = plan_memory(
            make_config(args, "raft"),
            quantization="nf4",
            gradient_checkpointing=args.gradient_checkpointing,
            batch_size=args.batch_size,
            global_batch_size=args.batch_size,
            max_length=args.length,
            optim=args.optim,
            dtype="bfloat16",
            bf16=True,
            attn_implementation=args.attn_implementation,
            device=args.device,
        )
    except ValueError:
        return None
    return plan.total / 1e9


class Memory:
    """Bytes beyond those of the time that it was made, as GB of 1e9 bytes."""

    def __init__(self, device: str):
        self.on_cpu = device == "cpu"
        self.before = 0
        self.before = self._held()

    def held(self) -> float:
        """What is held now."""
        return (self._held() - self.before) / 1e9

    def peak(self) -> float:
        """The most that was held."""
        peak = resident("VmHWM") if self.on_cpu else torch.cuda.max_memory_allocated()
        return (peak - self.before) / 1e9

    def reserved(self) -> float | None:
        """The most that PyTorch took from a GPU, with what it kept for later."""
        return None if self.on_cpu else torch.cuda.max_memory_reserved() / 1e9

    def _held(self) -> int:
        return resident("VmRSS") if self.on_cpu else torch.cuda.memory_allocated()


class Clock(TrainerCallback):
    """The seconds from the end of a step to the end of the next, so that the loading of the batch is within."""

    def __init__(self, device: str):
        self.device = device
        self.ends: list[float] = []

    @property
    def seconds(self) -> list[float]:
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.ends.append(time.perf_counter())


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_tflops(args: Arguments) -> tuple[float, str]:
    """The device's peak in bf16, in 1e12 FLOPs a second, and where it is from."""
    if args.peak_tflops is not None:
        return args.peak_tflops, "given"
    name = device_name(args.device)
    for known, tflops in PEAK_TFLOPS.items():
        if args.device != "cpu" and re.search(rf"\b{known}\b", name):
            return float(tflops), "data sheet"
    dtypes = [torch.float32]
    if args.device != "cpu" or cpu_multiplies_bf16():
        dtypes.append(torch.bfloat16)
    return max(matmul_tflops(args.device, dtype) for dtype in dtypes), "measured matmul"


def matmul_tflops(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """1e12 FLOPs a second of the fastest of some products of two large square matrices."""
    size = 2048 if device == "cpu" else 8192
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        matrix @ matrix
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e12


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
