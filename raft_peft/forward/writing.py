"""Texts that the model writes behind prompts: several of each, with what stands before them computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from raft_peft.forward.decoding import ends_of, padding_of, without_habits
from raft_peft.forward.layouts import positions_of
from raft_peft.forward.model import cache_argument, device_of, forward_parameters


@dataclass(frozen=True)
class Written:
    """A text that the model has written.

    Attributes:
        text: up to the words at which it was to stop, or to its end.
        ended: whether the model ended it, by these words or by an end of its own, before the limit.
    """

    text: str
    ended: bool


@torch.no_grad()
def write_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    temperature: float,
    max_new_tokens: int,
    stop: str,
) -> list[list[Written]]:
    """What the model writes behind each prompt, drawn by torch's random numbers. Each prompt is computed once.

    Args:
        model: the model without any wrapper.
        tokenizer: its tokenizer.
        prompts: the token ids of each.
        count: the texts of each prompt.
        temperature: by which logits are divided; 0 for the most likely text.
        max_new_tokens: the most tokens of a text.
        stop: words at which a text stops; they are left out.
    """
    ends = ends_of(model, tokenizer)
    padding = padding_of(tokenizer, ends)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=padding, stop_strings=[stop]
    )
    if temperature > 0:
        config.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    device = device_of(model.get_input_embeddings())
    ids = [torch.tensor(one) for one in prompts]
    inputs = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=padding, padding_side="left").to(device),
        "attention_mask": pad_sequence(
            [torch.ones_like(one) for one in ids], batch_first=True, padding_value=0, padding_side="left"
        ).to(device),
    }
    length = inputs["input_ids"].shape[1]
    with without_habits(model) as plain:
        options = _computed_once(plain, inputs, count)
        inputs = {name: values.repeat_interleave(count, 0) for name, values in inputs.items()}
        made = plain.generate(**inputs, **options, generation_config=config, tokenizer=tokenizer)
    texts = [_written(row, tokenizer, set(ends), stop) for row in made[:, length:].tolist()]
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def _computed_once(model: Any, inputs: dict[str, torch.Tensor], count: int) -> dict[str, Any]:
    """The cache of the prompts but for their last tokens, so many times; nothing where it cannot be copied."""
    if count == 1 or inputs["input_ids"].shape[1] == 1:
        return {}
    mask = inputs["attention_mask"][:, :-1]
    positions = {}
    if "position_ids" in forward_parameters(model):
        positions["position_ids"] = positions_of(mask)
    outputs = model(
        input_ids=inputs["input_ids"][:, :-1], attention_mask=mask, use_cache=True, logits_to_keep=1, **positions
    )
    name = cache_argument(model)
    cache = outputs.get(name)
    if cache is None or not hasattr(cache, "batch_repeat_interleave"):
        return {}
    cache.batch_repeat_interleave(count)
    return {name: cache}


def _written(ids: list[int], tokenizer: Any, ends: set[int], stop: str) -> Written:
    place = next((place for place, one in enumerate(ids) if one in ends), None)
    # A mark that closes a thought is a special token of some tokenizers.
    text = tokenizer.decode(ids[:place], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    before, found, _ = text.partition(stop)
    return Written(before, bool(found) or place is not None)
