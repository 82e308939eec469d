"""What the prompts of a model have in common: "Review: ... Stars:"."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

GAP = "..."


def prompt_shape(prompts: Sequence[Any]) -> Any | None:
    """The words that all of these prompts begin and end with, and `...` where they differ.

    Args:
        prompts: of several rows, each a text or a list of chat messages.

    Returns:
        A text, or a list of messages with the roles and the words that all have in common; None where the prompts are
        neither, or of unlike kinds.

    >>> prompt_shape(["Review: It broke. Stars:", "Review: Fine. Stars:"])
    'Review: ... Stars:'
    """
    if prompts and all(isinstance(prompt, str) for prompt in prompts):
        return _shape_of_texts(prompts)
    if not prompts or not all(isinstance(prompt, Sequence) for prompt in prompts):
        return None
    kinds = {tuple(_kind(message) for message in prompt) for prompt in prompts}
    if len(kinds) != 1 or not all(text for _, text in next(iter(kinds))):
        return None
    turns = zip(*prompts, strict=True)
    return [
        {"role": turn[0]["role"], "content": _shape_of_texts([message["content"] for message in turn])}
        for turn in turns
    ]


def fits_shape(prompt: Any, shape: Any) -> bool:
    """Whether a prompt has the words that others have in common.

    Args:
        prompt: a text or a list of chat messages.
        shape: as [`prompt_shape`] gives it for the others.

    >>> fits_shape("Review: Great. Stars:", "Review: ... Stars:"), fits_shape("Great.", "Review: ... Stars:")
    (True, False)
    """
    if isinstance(shape, str):
        return isinstance(prompt, str) and _fits(prompt, shape)
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or len(prompt) != len(shape):
        return False
    return all(
        _kind(message) == (turn["role"], True) and _fits(message["content"], turn["content"])
        for message, turn in zip(prompt, shape, strict=True)
    )


def _fits(text: str, shape: str) -> bool:
    start, _, end = shape.partition(GAP) if shape.count(GAP) == 1 else ("", "", "")
    # White space behind a prompt changes nothing of its wording.
    return text.startswith(start) and text.rstrip().endswith(end.rstrip())


def _kind(message: Any) -> tuple[Any, bool]:
    """A message's role, and whether its content is text."""
    if not isinstance(message, Mapping):
        return None, False
    return message.get("role"), isinstance(message.get("content"), str)


def _shape_of_texts(texts: Sequence[str]) -> str:
    # Of one text it is not known what it has in common with others.
    if len(set(texts)) == 1:
        return GAP
    start = _common_start(texts)
    end = _common_start([text[len(start) :][::-1] for text in texts])[::-1]
    # whole words alone, since rows may begin with the same letters by chance
    start = start[: max((index + 1 for index, letter in enumerate(start) if letter.isspace()), default=0)]
    end = end[min((index for index, letter in enumerate(end) if letter.isspace()), default=len(end)) :]
    return f"{start}{GAP}{end}"


def _common_start(texts: Sequence[str]) -> str:
    # All others lie between these two, which so differ the soonest.
    least, greatest = min(texts), max(texts)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(least, greatest, strict=False))
    return "".join(letter for letter, _ in same)
