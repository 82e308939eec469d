"""What several questions about one text cost: the text computed once, or again for each question.

    python benchmarks/questions.py
    python benchmarks/questions.py --questions 20 --state_tokens 1000

A RAFT step (forward and backward of LoRA) and a prediction on prompts that share a template, and several of them a
text each. The figures are the tokens that are computed, beside those that are distinct, and the time as a ratio to
that of separate padded rows in the same turn: the median, and the range between the quartiles.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from common.prompts import WORDS
from common.raft_step import raft_step
from common.side_by_side import device_name, make_batches, ratios, time_in_turn, write
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.forward.layouts import flat_sequences, padded_left

GRID = NumberGrid([1, 2, 3, 4, 5])
_TEMPLATE = "Read the text and answer the question with a number from 1 to 5.\n\n"


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    states: int = field(default=3, metadata={"help": "Texts in a batch of training."})
    questions: int = field(default=5, metadata={"help": "Questions about each text."})
    state_tokens: int = field(default=400, metadata={"help": "About so many tokens in a text."})
    question_tokens: int = field(default=30, metadata={"help": "About so many tokens in a question."})
    predicted_states: int = field(default=8, metadata={"help": "Texts of a prediction."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "eager or sdpa."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    bf16: bool = field(default=True, metadata={"help": "Whether to run under bf16 autocast."})
    turns: int = field(default=3, metadata={"help": "How often each way is timed."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = make_prompts(args, args.states)
    (batch,) = make_batches(tokenizer, GRID, [{"prompt": prompt} for prompt in prompts], len(prompts))
    step = {way: raft_step(args, tokenizer, GRID, padding_free=way == "shared") for way in ("separate", "shared")}
    predicted = make_prompts(args, args.predicted_states)
    predictors = {way: make_predictor(args, tokenizer, shares=way == "shared") for way in ("separate", "shared")}
    seconds = time_in_turn({f"training, {way}": partial(step[way], batch) for way in step}, args.turns, args.device)
    seconds |= time_in_turn(
        {f"prediction, {way}": partial(predictors[way], predicted) for way in predictors}, args.turns, args.device
    )
    computed, distinct = computed_and_distinct(args, batch)
    device = device_name(args.device)
    print(f"{args.model}, {args.attn_implementation}, bf16 {args.bf16}, {device}\n")
    print(
        f"{args.states} texts with {args.questions} questions: {computed:,} tokens computed, {distinct:,} distinct\n"
    )
    print("| way | time / separate rows | quartiles |\n|---|---|---|")
    for task in ("training", "prediction"):
        low, middle, high = ratios(seconds[f"{task}, shared"], seconds[f"{task}, separate"])
        print(f"| {task}, shared | {middle:.2f} | {low:.2f} to {high:.2f} |")
    write(args, {"device": device, "seconds": seconds, "computed": computed, "distinct": distinct})


def make_prompts(args: Arguments, states: int) -> list[str]:
    """Prompts in random order, several about each text."""
    draw = random.Random(0)
    asked = [" ".join(draw.choices(WORDS, k=args.question_tokens - 4)) for _ in range(args.questions)]
    texts = [" ".join(draw.choices(WORDS, k=args.state_tokens)) for _ in range(states)]
    prompts = [f"{_TEMPLATE}{text}\n\nQuestion: {question}?" for text in texts for question in asked]
    draw.shuffle(prompts)
    return prompts


def computed_and_distinct(args: Arguments, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """The tokens of a batch that are computed, and those that are not the same behind the same tokens."""
    model = AutoModelForCausalLM.from_pretrained(args.model, attn_implementation=args.attn_implementation)
    ids, mask = padded_left(batch["input_ids"], batch["attention_mask"])
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    distinct = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    return flat_sequences(model, ids, mask, None).input_ids.shape[1], len(distinct)


def make_predictor(args: Arguments, tokenizer: Any, *, shares: bool) -> Callable[[list[str]], Any]:
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attn_implementation
    ).to(args.device)
    predictor = RegressionPredictor(model, tokenizer, GRID, autocast="bfloat16" if args.bf16 else None)
    if not shares:
        # Nothing is shared where a head reads the states of all positions, and so says the readout.
        predictor.readout.can_cache_prefixes = lambda model: False
    return partial(predictor.predict, show_progress=False)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
