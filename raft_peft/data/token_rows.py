"""Rows that are tokenized already: their prompt's ids, without padding and without an end behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def ids_of_prompt(row: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], bool]:
    """The ids of a row's prompt, and whether padding or an end was taken off that no mask had masked.

    Args:
        row: with `input_ids`, and with `attention_mask` where some of them are padding.
        tokenizer: a Hugging Face tokenizer.

    Raises:
        ValueError: the ids are none, or are masked inside the prompt.
    """
    ids = _integers(row["input_ids"], "input_ids")
    if not ids:
        raise ValueError("The row's input_ids are empty. They must hold the prompt, up to where the number begins.")
    if row.get("attention_mask") is not None:
        ids = _unmasked(ids, _integers(row["attention_mask"], "attention_mask"))
    bare = _without_end(_without_padding(ids, tokenizer), tokenizer)
    if not bare:
        raise ValueError("The row's input_ids are only padding. They must hold the prompt.")
    return bare, bare != ids


def _integers(values: Any, name: str) -> list[int]:
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"The row's {name} hold {values[:1]}, and must be a flat list of integers.")
    return values


def _unmasked(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    if len(mask) != len(ids):
        raise ValueError(
            f"The row has {len(ids)} input_ids and an attention_mask of {len(mask)}. Their numbers must be equal."
        )
    places = [place for place, attended in enumerate(mask) if attended]
    if not places:
        raise ValueError("The row's attention_mask is 0 everywhere, so there is no prompt.")
    first, last = places[0], places[-1]
    if len(places) != last - first + 1:
        raise ValueError(
            "The row's attention_mask masks tokens inside the prompt, and only padding can be removed. Leave out the "
            "masked tokens."
        )
    return list(ids[first : last + 1])


def _without_padding(ids: list[int], tokenizer: Any) -> list[int]:
    """Without padding in front. One token of padding may be the token with which texts begin."""
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.unk_token_id:
        return ids
    count = next((place for place, one in enumerate(ids) if one != pad), len(ids))
    begins_text = pad in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if count == 0 or (count == 1 and begins_text):
        return ids
    kept = 1 if pad == tokenizer.bos_token_id and tokenizer("a")["input_ids"][:1] == [pad] else 0
    return ids[count - kept :]


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Without the padding and the ends of sequence behind the prompt."""
    ends = {tokenizer.pad_token_id, tokenizer.eos_token_id} - {None, tokenizer.unk_token_id}
    length = len(ids)
    while length and ids[length - 1] in ends:
        length -= 1
    return ids[:length]
