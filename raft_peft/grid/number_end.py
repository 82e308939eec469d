"""Where a number ends: what tells "1" from the beginning of "10"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GRID_END, EOS_END, TURN_END = "grid", "eos", "end_of_turn"


@dataclass(frozen=True)
class NumberEnd:
    """What must follow a number, so that the events of two numbers are disjoint.

    Where neither a token nor a text is given, it is that the number does not go on within the grid: the probability
    of "1" beside "10" is that of its tokens, times the probability that no token of the grid's longer numbers
    follows.

    Attributes:
        token_id: a token that must follow.
        text: a text that must follow.
        every_number: whether it must follow every number, or only those with which another begins.
    """

    token_id: int | None = None
    text: str = ""
    every_number: bool = False

    @classmethod
    def of(cls, name: str, tokenizer: Any, *, every_number: bool = False) -> NumberEnd:
        """The end of this name.

        Args:
            name: grid, eos, end_of_turn, or the text itself, such as "." or a new line.
            tokenizer: a Hugging Face tokenizer.
            every_number: whether it must follow every number.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        if name == GRID_END:
            return cls()
        if name == EOS_END:
            if tokenizer.eos_token_id is None:
                raise ValueError(
                    "`number_end='eos'`, but the tokenizer has no end-of-sequence token. Set tokenizer.eos_token, or "
                    "leave `number_end` at 'grid'."
                )
            return cls(token_id=tokenizer.eos_token_id, every_number=every_number)
        if name == TURN_END:
            return cls(token_id=_end_of_turn_id(tokenizer), every_number=every_number)
        return cls(text=name, every_number=every_number)


def _end_of_turn_id(tokenizer: Any) -> int:
    """The special token that the chat template puts behind an assistant's message."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "`number_end='end_of_turn'`, but the tokenizer has no chat template, which defines the token that ends a "
            "turn. Set tokenizer.chat_template, or leave `number_end` at 'grid'."
        )
    answer = "0123456789"  # a text that no template holds by itself
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    following = tokenizer(rendered.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder.get(following[0]) if following else None
    if not following or not (following[0] in tokenizer.all_special_ids or (added is not None and added.special)):
        raise ValueError(
            f"The chat template puts {rendered.rpartition(answer)[2]!r} after an assistant's message, and this does "
            "not begin with a special token. Set `number_end` to this text, or to 'grid'."
        )
    return following[0]
