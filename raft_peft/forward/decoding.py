"""Numbers from generated text: what the model writes, parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from raft_peft.forward.layouts import padded_left
from raft_peft.forward.model import base_model, copied, with_parts
from raft_peft.grid import NumberGrid

# Long enough for any score or price, also digit by digit. A target that needs more is refused before training.
MAX_NEW_TOKENS = 12
# A sign, unless it is a hyphen inside a word; thousands with their commas, or plain digits; decimals.
_NUMBER = re.compile(r"(?:(?<!\w)[-+−])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?")  # noqa: RUF001
_GOES_ON = re.compile(r"\w|[.,]\d")


def parse_number(text: str, grid: NumberGrid) -> float | None:
    """The number that a text holds: a grid text that it begins with, or else the first decimal number in it.

    >>> parse_number(" 4.5 out of 5", NumberGrid([1, 5]))
    4.5
    >>> parse_number("B, because", NumberGrid({1: "A", 2: "B"}))
    2.0
    >>> parse_number("very good", NumberGrid([1, 5])) is None
    True
    """
    text = text.strip()
    if not grid.is_plain:
        for value, grid_text in sorted(grid, key=lambda pair: -len(pair[1])):
            rest = text.removeprefix(grid_text.strip())
            if rest != text and not _GOES_ON.match(rest):
                return value
    for match in _NUMBER.finditer(text):
        if any(character.isdigit() for character in match.group()):
            number = float(match.group().replace(",", "").replace("−", "-"))  # noqa: RUF001
            return number if math.isfinite(number) else None
    return None


@torch.no_grad()
def generate_texts(
    model: Any,
    tokenizer: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    num_samples: int | None = None,
) -> list[list[str]]:
    """What the model writes behind each prompt: the most likely text, or samples at temperature 1.

    Args:
        model: the model without any wrapper.
        tokenizer: its tokenizer.
        input_ids: tokens of the prompts, of shape (batch, length).
        attention_mask: 1 on real tokens and 0 on padding, of shape (batch, length).
        num_samples: samples of each prompt; None to decode greedily.

    Returns:
        For each prompt one text, or `num_samples`.
    """
    input_ids, attention_mask = padded_left(input_ids, attention_mask)
    ends = ends_of(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=ends or None,
        pad_token_id=padding_of(tokenizer, ends),
    )
    if num_samples is not None:
        config.update(do_sample=True, num_return_sequences=num_samples, temperature=1.0, top_k=0, top_p=1.0)
    with without_habits(model) as plain:
        generated = plain.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config)
    texts = tokenizer.batch_decode(generated[:, input_ids.shape[1] :], skip_special_tokens=True)
    count = num_samples or 1
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens by which the model ends a text: the tokenizer's, and those that it ships with."""
    own = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


def padding_of(tokenizer: Any, ends: list[int]) -> int:
    """A token to fill texts up with: the tokenizer's own, or one that ends them."""
    return next((one for one in (tokenizer.pad_token_id, *ends) if one is not None), 0)


@contextmanager
def without_habits(model: Any) -> Iterator[Any]:
    """A view of the model without the generation settings that it ships with.

    `generate` fills in from them whatever a configuration leaves open: a repetition penalty, beams, suppressed tokens.
    """
    base, plain = base_model(model), GenerationConfig()
    if not isinstance(model, FSDPModule):
        view = copied(base, generation_config=plain)
        yield view if base is model else with_parts(model, {base: view}, generation_config=plain)
        return
    # FSDP knows a model by itself, and not by a view. Such a model is in training, and no other thread uses it.
    owners: list[Any] = [model, base]
    before = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = plain
    try:
        yield model
    finally:
        for owner, generation_config in zip(owners, before, strict=True):
            owner.generation_config = generation_config


def numbers_in_texts(texts: list[list[str]], grid: NumberGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean number of each prompt's texts, 0 where a text holds none, and the share of the texts that hold one.

    Both are float32, of shape (batch,) (the paper's eq. 1 for one text, eq. 4 for samples).
    """
    parsed = [[parse_number(text, grid) for text in row] for row in texts]
    numbers = [sum(number or 0.0 for number in row) / len(row) for row in parsed]
    shares = [sum(number is not None for number in row) / len(row) for row in parsed]
    return torch.tensor(numbers, dtype=torch.float32), torch.tensor(shares, dtype=torch.float32)
