"""What a prediction costs: `RegressionPredictor` beside a head in a pipeline, a CrossEncoder, and sampled numbers.

    python benchmarks/inference.py
    python benchmarks/inference.py --model google/gemma-2-2b --device cuda

Times are ratios to `RegressionPredictor.predict` in the same turn, on the same prompts. The pipeline and the
CrossEncoder take the same batch size. RAIL by sampling is the paper's: 32 samples at temperature 1, on a few of the
prompts.
"""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common.fresh_process import in_fresh_process, peak_growth
from common.prompts import like_a_judges, like_stsb
from common.side_by_side import device_name, ratios, time_in_turn, write
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser, pipeline

from raft_peft import RegressionPredictor

GRID = range(6)


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    device: str = field(default="cpu", metadata={"help": "Where to run."})
    prompts: int = field(default=128, metadata={"help": "How many prompts are read."})
    judge_prompts: int = field(default=16, metadata={"help": "How many prompts with a rubric are read."})
    sampled_prompts: int = field(default=2, metadata={"help": "How many of them are answered by sampling."})
    batch_size: int = field(default=32, metadata={"help": "Prompts in a batch."})
    turns: int = field(default=5, metadata={"help": "How often each way is timed."})
    memory_prompts: list[int] = field(
        default_factory=lambda: [10_000, 100_000],
        metadata={"help": "How many prompts are read by a tiny model to see what memory grows with."},
    )
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    stsb, judge = like_stsb(args.prompts), like_a_judges(args.judge_prompts)
    options = {"grid": GRID, "dtype": "float32", "device_map": args.device}
    predictor = RegressionPredictor.from_pretrained(args.model, **options)
    uncached = RegressionPredictor.from_pretrained(args.model, **options)
    uncached.readout.can_cache_prefixes = lambda _model: False
    sampler = RegressionPredictor.from_pretrained(args.model, num_samples=32, method="rail", **options)
    few = stsb[: args.sampled_prompts]
    ways: dict[str, dict[str, Callable[[], Any]]] = {
        "prompts like STS-B's": {
            "RegressionPredictor": lambda: predict(predictor, stsb, args),
            "RegressionPredictor, nothing cached": lambda: predict(uncached, stsb, args),
            "text-classification pipeline": make_pipeline(args, stsb),
            "CrossEncoder": make_cross_encoder(args, stsb),
        },
        "a judge's prompts": {
            "RegressionPredictor": lambda: predict(predictor, judge, args),
            "RegressionPredictor, nothing cached": lambda: predict(uncached, judge, args),
            "text-classification pipeline": make_pipeline(args, judge),
        },
        "a few prompts": {
            "RegressionPredictor": lambda: predict(predictor, few * 8, args),
            "RAIL, 32 samples": lambda: predict(sampler, few, args),
        },
    }
    print(f"{args.model}, float32, batch {args.batch_size}, {device_name(args.device)}\n")
    print("| prompts | way | time / RegressionPredictor | quartiles |\n|---|---|---|---|")
    figures = []
    for kind, of_kind in ways.items():
        turns = 3 if kind == "a few prompts" else args.turns
        seconds = time_in_turn(of_kind, turns, args.device)
        for way, times in seconds.items():
            low, middle, high = ratios(times, seconds["RegressionPredictor"])
            # Sampling read an eighth of the prompts.
            if way == "RAIL, 32 samples":
                low, middle, high = 8 * low, 8 * middle, 8 * high
            figures.append({"prompts": kind, "way": way, "time": middle, "quartiles": [low, high]})
            figures[-1]["seconds"] = statistics.median(times)
            print(f"| {kind} | {way} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)
    memory = {count: in_fresh_process(memory_of_predictions, args.model, count) for count in args.memory_prompts}
    for count, size in memory.items():
        print(f"\n{count:,} prompts, a tiny model: {size / 1e6:.1f} MB beyond the model.")
    write(args, {"device": device_name(args.device), "figures": figures, "memory": memory})


def predict(predictor: RegressionPredictor, prompts: list[str], args: Arguments) -> Any:
    return predictor.predict(prompts, args.batch_size, show_progress=False)


def make_pipeline(args: Arguments, prompts: list[str]) -> Callable[[], Any]:
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    scorer = pipeline("text-classification", model=model, tokenizer=tokenizer, device=args.device)
    return lambda: scorer(prompts, batch_size=args.batch_size, function_to_apply="none")


def make_cross_encoder(args: Arguments, prompts: list[str]) -> Callable[[], Any]:
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(args.model, num_labels=1, device=args.device)
    encoder.tokenizer.pad_token = encoder.tokenizer.pad_token or encoder.tokenizer.eos_token
    encoder.model.config.pad_token_id = encoder.tokenizer.pad_token_id
    pairs = [tuple(prompt.split(". ", 1)) if ". " in prompt else (prompt, "") for prompt in prompts]
    return lambda: encoder.predict(pairs, batch_size=args.batch_size, show_progress_bar=False)


def memory_of_predictions(model: str, count: int) -> int:
    """The memory that so many predictions take, by a model of one layer and the tokenizer of the one named."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    tiny = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    predictor = RegressionPredictor(tiny, tokenizer, GRID)
    some = like_stsb(1000)
    predictor.predict(some * 5, show_progress=False)
    prompts = itertools.islice(itertools.cycle(some), count)
    return peak_growth(lambda: predictor.predict(prompts, show_progress=False))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
