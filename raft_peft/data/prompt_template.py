"""Prompts made of a row's columns: "Review: {text}\\nStars:", as a text or as the messages of a chat."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from raft_peft.data.reasoning.reasonings import REASONING

# The column of prompts that are written already.
PROMPT = "prompt"

# The beginning of a JSON list of messages; a text may begin with a column in brackets, "[{text}]".
_JSON_MESSAGES = re.compile(r'\s*\[\s*\{\s*"')


class PromptTemplate:
    """A text with the names of columns in braces, as `str.format` reads it, or chat messages of such texts.

    >>> PromptTemplate("Review: {text} Stars:")({"text": "Works.", "id": 7})
    'Review: Works. Stars:'
    >>> PromptTemplate([{"role": "user", "content": "How many stars? {text}"}])({"text": "Works."})
    [{'role': 'user', 'content': 'How many stars? Works.'}]

    Args:
        template: a text, or a list of messages, each with a `role` and a `content`.

    Attributes:
        template: as it was given.
        columns: the names of the columns, each once.

    Raises:
        ValueError: it is not a template, or names no column.
    """

    def __init__(self, template: str | Sequence[Mapping[str, str]]):
        self.template: str | list[dict[str, str]] = (
            template if isinstance(template, str) else [_checked(message) for message in template]
        )
        texts = [self.template] if isinstance(self.template, str) else [one["content"] for one in self.template]
        self.columns = tuple(dict.fromkeys(name for text in texts for name in _names_in(text)))
        if not self.columns or not all(name.isidentifier() for name in self.columns):
            raise ValueError(
                f"The prompt template {self.template!r} must name columns in braces, as in 'Review: {{text}} Stars:'."
            )

    @classmethod
    def of(
        cls,
        template: str | Sequence[Mapping[str, str]] | PromptTemplate | None,
        *,
        chat: bool = False,
        system: str | None = None,
    ) -> PromptTemplate | None:
        """The template that settings ask for; None where prompts are to stay as they are.

        Args:
            template: a text; messages, also as the text of a JSON list; or None, where the prompt is the column
                `prompt`.
            chat: whether a text, or that column, becomes the message of a user.
            system: a message before it, which may name columns, too; with it there is a chat.

        Raises:
            ValueError: it is not a template, or holds messages already where `chat` or `system` is set.
        """
        if isinstance(template, PromptTemplate):
            template = template.template
        if isinstance(template, str) and _JSON_MESSAGES.match(template):
            template = _messages_of(template)
        if not chat and system is None:
            return None if template is None else cls(template)
        if template is not None and not isinstance(template, str):
            raise ValueError(
                f"The prompt template {template!r} holds messages, so it is a chat already. Leave out `chat` and "
                "`system`, and write a system message into the template."
            )
        messages = [] if system is None else [{"role": "system", "content": system}]
        return cls([*messages, {"role": "user", "content": template or f"{{{PROMPT}}}"}])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptTemplate) and self.template == other.template

    def __hash__(self) -> int:
        return hash(json.dumps(self.template))

    def __repr__(self) -> str:
        return repr(self.template)

    def __call__(self, row: Mapping[str, Any], number: int | None = None) -> str | list[dict[str, str]]:
        """The prompt of a row.

        Args:
            row: its columns.
            number: its own in the dataset, for messages.

        Raises:
            ValueError: the row lacks a column, or has a value that does not fit the template's format.
        """
        where = "" if number is None else f"Row {number}: "
        missing = next((name for name in self.columns if row.get(name) is None), None)
        if missing is not None:
            raise ValueError(where + self._why_missing(missing, row))
        if PROMPT in self.columns and not isinstance(row[PROMPT], str):
            raise ValueError(
                f"{where}The prompt template takes the column {PROMPT!r} as a text, and it is {row[PROMPT]!r:.80}. "
                "Leave out the template, or `chat` and `system`, where prompts are chats already."
            )
        if isinstance(self.template, str):
            return self._filled(self.template, row)
        return [{**message, "content": self._filled(message["content"], row)} for message in self.template]

    def applies_to(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the columns; one whose `prompt` is a chat needs no template that wraps a text."""
        return all(row.get(name) is not None for name in self.columns) and (
            PROMPT not in self.columns or isinstance(row[PROMPT], str)
        )

    def write(self, row: Mapping[str, Any], number: int | None = None) -> dict[str, Any]:
        """The row with its prompt.

        Args:
            row: its columns.
            number: its own in the dataset, for messages.

        Raises:
            ValueError: as calling it.
        """
        # A reasoning that the template names is part of the prompt, and stands behind it no more.
        written = {REASONING: None} if REASONING in self.columns else {}
        return {**row, **written, PROMPT: self(row, number)}

    def write_all(self, dataset: Any, name: str) -> Any:
        """A dataset of `datasets` with its prompts.

        Args:
            dataset: the rows.
            name: what to call it in messages.

        Raises:
            ValueError: as calling the template.
        """
        try:
            return dataset.map(self.write, with_indices=True)
        except ValueError as error:
            raise ValueError(f"{name} cannot be used. {error}") from error

    def _why_missing(self, name: str, row: Mapping[str, Any]) -> str:
        """Why a row has no value in a column, and the cure."""
        if name in row:
            return f"The column {name!r}, which the prompt is made of, is empty. Fill it, or drop the row."
        # Without a template of the user's own, `chat` and `system` wrap the column of prompts.
        if name == PROMPT and not isinstance(self.template, str) and self.template[-1]["content"] == f"{{{PROMPT}}}":
            return (
                f"`chat` and `system` make a chat of the column `{PROMPT}`, and the row has the columns {list(row)}. "
                "Rename the column of the text, or set `prompt_template`, such as 'Review: {text} Stars:'."
            )
        return (
            f"The prompt template names the column {name!r}, and the row has the columns {list(row)}. Correct the "
            "name in `prompt_template`, or rename the column."
        )

    def _filled(self, text: str, row: Mapping[str, Any]) -> str:
        try:
            return text.format_map(row)
        except ValueError as error:
            values = {name: row[name] for name in self.columns}
            raise ValueError(
                f"The prompt template {text!r} cannot be filled with {values!r:.200}: {error}. Leave out the format "
                "after the column's name, or give one that fits; in a CSV file all values are texts."
            ) from None


def _checked(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise ValueError(
            f"The prompt template has the message {message!r}. A message is "
            "{'role': 'user', 'content': 'Review: {text}'}."
        )
    return dict(message)


def _names_in(text: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"The prompt template {text!r} cannot be read: {error}. Write a brace itself as {{{{ or }}}}."
        ) from None


def _messages_of(text: str) -> list[Any]:
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"The prompt template {text!r:.200} begins like a JSON list of messages, but is not one: {error}. Write a "
            "brace itself as {{ or }}."
        ) from None
    return list(messages)
