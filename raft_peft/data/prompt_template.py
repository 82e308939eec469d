"""Prompts made of a row's columns: "Review: {text}\\nStars:"."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any


class PromptTemplate:
    """A text with the names of columns in braces, as `str.format` reads it.

    >>> PromptTemplate("Review: {text} Stars:")({"text": "Works.", "id": 7})
    'Review: Works. Stars:'

    Raises:
        ValueError: the text is not a template, or names no column.
    """

    def __init__(self, text: str):
        try:
            names = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise ValueError(
                f"The prompt template {text!r} cannot be read: {error}. Write a brace itself as {{{{ or }}}}."
            ) from None
        if not names or not all(name.isidentifier() for name in names):
            raise ValueError(
                f"The prompt template {text!r} must name columns in braces, as in 'Review: {{text}} Stars:'."
            )
        self.text = text
        self.columns = tuple(dict.fromkeys(names))

    def __call__(self, row: Mapping[str, Any]) -> str:
        """The prompt of a row.

        Raises:
            ValueError: the row lacks a column, or has a value that does not fit the template's format.
        """
        missing = [name for name in self.columns if row.get(name) is None]
        if missing:
            raise ValueError(
                f"The prompt template names the column {missing[0]!r}, which a row lacks or leaves empty. It has "
                f"{', '.join(name for name in row if row[name] is not None)}."
            )
        try:
            return self.text.format_map(row)
        except ValueError as error:
            values = {name: row[name] for name in self.columns}
            raise ValueError(
                f"The prompt template {self.text!r} cannot be filled with {values!r:.200}: {error}. Leave out the "
                "format behind the column's name, or give one that fits; in a CSV file all values are texts."
            ) from None


def prompt_writer(template: str | None) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """What gives a row its prompt: by a template, or as it stands in the row where there is none.

    Raises:
        ValueError: the text is not a template.
    """
    if template is None:
        return lambda row: row
    fill = PromptTemplate(template)
    return lambda row: {**row, "prompt": fill(row)}


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
