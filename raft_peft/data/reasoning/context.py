"""A prompt with a reasoning and the words that lead to the score behind it, as what stands before a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raft_peft.data.reasoning.reasonings import ScorePrefix
from raft_peft.grid.resolution import Context, leading_special_ids


@dataclass(frozen=True)
class ReasonedContext:
    """What stands before a number.

    Attributes:
        ids_before: the ids that stand before the text of `context`.
        context: the rest of it, as text.
        prompt_ids: the ids of the prompt alone, as far as they are in `context`.
        was_cut: whether the reasoning lost its end.
    """

    ids_before: list[int]
    context: Context
    prompt_ids: list[int]
    was_cut: bool = False

    def tokens_behind_prompt(self, ids: Sequence[int]) -> int:
        """How many of the ids of `context` stand behind those of the prompt."""
        own = self.prompt_ids
        # The tokenizer may put some of its own, such as `<bos>`, in front.
        start = next(start for start in range(len(ids)) if list(ids[start : start + len(own)]) == own)
        return len(ids) - start - len(own)


def reasoned_context(
    ids_before: list[int],
    context: Context,
    reasoning: str | None,
    prefix: ScorePrefix,
    tokenizer: Any,
    max_length: int | None,
) -> ReasonedContext:
    """A prompt, the reasoning behind it, and the words of the prefix.

    A reasoning loses its end where prompt and reasoning are longer than `max_length`, but not more than leaves it half
    of `max_length`; what is still too much is the prompt's.

    Args:
        ids_before: ids that stand before the prompt's text.
        context: the prompt, and what stands between it and an answer.
        reasoning: None for the words of the prefix alone.
        prefix: the words that lead to the score.
        tokenizer: a Hugging Face tokenizer.
        max_length: the most tokens of all of it; None for no limit.
    """
    prompt_ids = _encode(tokenizer, context.text)
    was_cut = False
    # Those that the tokenizer puts in front, such as `<bos>`.
    leading = leading_special_ids(tokenizer, "a") if context.add_special_tokens else ()
    if reasoning is not None and max_length is not None:
        room = max(max_length - len(ids_before) - len(leading) - len(prompt_ids), max_length // 2)
        reasoning, was_cut = _cut_to(reasoning, room, context, prefix, tokenizer)
    behind = _behind(context, reasoning, prefix)
    whole = _encode(tokenizer, context.text + behind)
    number = replace(context, text=context.text + behind, separator=prefix.separator)
    if whole[: len(prompt_ids)] == prompt_ids:
        return ReasonedContext(ids_before, number, prompt_ids, was_cut)
    # The reasoning's first token took in the prompt's last one, while a model that writes one begins behind it.
    own = replace(number, text=behind, add_special_tokens=False)
    return ReasonedContext([*ids_before, *leading, *prompt_ids], own, [], was_cut)


def _behind(context: Context, reasoning: str | None, prefix: ScorePrefix) -> str:
    text = prefix.behind(reasoning)
    return text if text[:1].isspace() else context.separator + text


def _cut_to(reasoning: str, room: int, context: Context, prefix: ScorePrefix, tokenizer: Any) -> tuple[str, bool]:
    """A reasoning of which so many tokens are left, with the words of the prefix, and whether it lost any."""
    over = len(_encode(tokenizer, _behind(context, reasoning, prefix))) - room
    if over <= 0:
        return reasoning, False
    ids = _encode(tokenizer, reasoning.strip())
    kept = reasoning
    while over > 0 and ids:
        ids = ids[: max(0, len(ids) - over)]
        kept = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # What is left of a letter of several tokens is no letter.
        kept = kept.rstrip("\ufffd")
        over = len(_encode(tokenizer, _behind(context, kept, prefix))) - room
    return kept, True


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
