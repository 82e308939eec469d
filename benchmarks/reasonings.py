"""What several reasonings about one prompt cost: the prompt computed once, or again for each reasoning.

    python benchmarks/reasonings.py
    python benchmarks/reasonings.py --reasonings 8 --prompt_tokens 2000

The figures are the tokens that go through the model, while reasonings are written, while numbers are read behind
them, and in a training step on them. Apart means one reasoning of each prompt at a time, as often; in training, each
in a padded row of its own.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common.prompts import WORDS
from common.side_by_side import write
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor

GRID = [1, 2, 3, 4, 5]


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    prompts: int = field(default=1, metadata={"help": "Prompts."})
    prompt_tokens: int = field(default=500, metadata={"help": "Tokens in a prompt."})
    reasonings: int = field(default=5, metadata={"help": "Reasonings of each prompt."})
    reasoning_tokens: int = field(default=8, metadata={"help": "Tokens in a reasoning."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
    predictor = RegressionPredictor(model, tokenizer, GRID, score_prefix="\n[RESULT] ")
    prompts = make_prompts(args, tokenizer)
    figures = {way: {"writing": 0, "reading": 0, "training": 0} for way in ("apart", "shared")}
    for way, count, repeats in (("apart", 1, args.reasonings), ("shared", args.reasonings, 1)):
        for _ in range(repeats):
            writer = predictor.writer(count, max_reasoning_tokens=args.reasoning_tokens, seed=0)
            assert writer is not None
            with counted(model) as tokens:
                written = writer.write([{"prompt": prompt} for prompt in prompts])
            figures[way]["writing"] += sum(tokens)
            rows = [
                {"prompt": prompt, "reasoning": [one.text.strip() or "None." for one in own]}
                for prompt, own in zip(prompts, written, strict=True)
            ]
            with counted(model) as tokens:
                predictor.predict(rows)
            figures[way]["reading"] += sum(tokens)
    for way in figures:
        figures[way]["training"] = trained(model, tokenizer, rows, shared=way == "shared")
    print(
        f"{args.prompts} prompts of {args.prompt_tokens} tokens, {args.reasonings} reasonings each of up to "
        f"{args.reasoning_tokens} tokens, {args.model}\n\n{'tokens computed':<17}"
        f"{'writing':>9}{'reading':>9}{'training':>10}"
    )
    for way, of_way in figures.items():
        print(f"{way:<17}{of_way['writing']:>9}{of_way['reading']:>9}{of_way['training']:>10}")
    write(args, {"tokens": figures})


def trained(model: Any, tokenizer: Any, rows: list[dict[str, Any]], *, shared: bool) -> int:
    """The tokens of the forward pass of a training step on all reasonings of the rows."""
    with TemporaryDirectory() as folder:
        settings = RegressionAwareConfig(
            folder, per_device_train_batch_size=len(rows), padding_free=shared, report_to="none", bf16=False
        )
        trainer = RegressionAwareTrainer(
            model,
            settings,
            grid=GRID,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{**row, "label": 3.0} for row in rows]),
        )
        batch = next(iter(trainer.get_train_dataloader()))
        with counted(model) as tokens, torch.no_grad():
            trainer.compute_loss(model, batch)
    # What comes before it are trials of the layout on few tokens.
    return tokens[-1]


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The tokens of each forward pass, with padding."""
    tokens: list[int] = []

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        tokens.append(inputs[0].numel())

    handle = model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        yield tokens
    finally:
        handle.remove()


def make_prompts(args: Arguments, tokenizer: Any) -> list[str]:
    """Prompts of random words, of so many tokens."""
    draw = random.Random(0)
    prompts = []
    for _ in range(args.prompts):
        ids = tokenizer(" ".join(draw.choices(WORDS, k=args.prompt_tokens)))["input_ids"][: args.prompt_tokens]
        prompts.append(tokenizer.decode(ids))
    return prompts


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
