"""Prompts made of a row's columns: "Review: {text}\\nStars:"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
            ValueError: the row lacks a column.
        """
        missing = [name for name in self.columns if row.get(name) is None]
        if missing:
            raise ValueError(
                f"The prompt template names the column {missing[0]!r}, which a row lacks or leaves empty. It has "
                f"{', '.join(name for name in row if row[name] is not None)}."
            )
        return self.text.format_map(row)


def prompt_writer(template: str | None) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """What gives a row its prompt: by a template, or as it stands in the row where there is none.

    Raises:
        ValueError: the text is not a template.
    """
    if template is None:
        return lambda row: row
    fill = PromptTemplate(template)
    return lambda row: {**row, "prompt": fill(row)}
