"""Chats: messages through a chat template, and what a template or a table may make of them unnoticed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft_peft.data.thoughts import is_in_thought

# What a row may hold beside a chat, for its template.
CHAT_COLUMNS = ("tools", "chat_template_kwargs")

_EXAMPLE = "{'role': 'user', 'content': '...'}"

Text = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RenderedChat:
    """A chat as text.

    Attributes:
        text: of the whole chat; the answer, or the rest of it, would follow.
        begins_answer: whether its last message is the beginning of the answer.
        is_in_thought: whether it ends inside an open thought.
    """

    text: str
    begins_answer: bool
    is_in_thought: bool


def render_chat(processor: Any, messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> RenderedChat:
    """A chat as its template writes it, with the generation prompt, or behind the beginning of an answer.

    Args:
        processor: a tokenizer or processor with a chat template.
        messages: the chat. Their content is text, or a list of parts of text, which count as one text.
        row: what may hold `tools` (a list) and `chat_template_kwargs` (a mapping), each also as JSON, as in a table.
            Keys that are null count as absent, as Arrow adds them to all rows where one has them.

    Raises:
        ValueError: messages without role or text; `tools` or `chat_template_kwargs` of another kind; or a template
            that refuses the messages or leaves out the last one's text.
    """
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            "The prompt is a list of chat messages, but the tokenizer has no chat template. Set "
            "`tokenizer.chat_template` or `chat_template_path`, use the instruction-tuned model's tokenizer, or "
            "give the prompt as text."
        )
    chat = [_as_text_message(number, without_nulls(message)) for number, message in enumerate(messages)]
    options = _template_options(row)
    last = chat[-1].get("content", "")
    begins_answer = chat[-1]["role"] == "assistant" and "content" in chat[-1]
    refusal: Exception | None = None
    # Templates of models that also see images take the text as a part, and write nothing of a plain text.
    for form in (chat, [_in_parts(message) for message in chat]):
        try:
            text = processor.apply_chat_template(
                form,
                tokenize=False,
                add_generation_prompt=not begins_answer,
                continue_final_message=begins_answer,
                **options,
            )
        # A template is a program of the model's authors, and may raise anything.
        except Exception as error:
            refusal = refusal or error
            continue
        if _holds(text, last):
            authors = [one.get("content", "") for one in chat if one["role"] != "assistant"]
            return RenderedChat(text, begins_answer, is_in_thought(text, authors[-1] if authors else ""))
    if refusal is not None:
        raise ValueError(f"The chat template refuses these messages: {refusal}. {_cure_of(str(refusal))}") from refusal
    raise ValueError(
        f"The chat template leaves out the text of the last message, {_shortened(last)!r}. Set a chat template that "
        "writes it (`tokenizer.chat_template`), or give the prompt as text."
    )


def _template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gives to its chat template beside the messages."""
    tools = _read_json(row, "tools", list, "a list", '[{"name": "search", "description": "..."}]')
    options = _read_json(row, "chat_template_kwargs", dict, "names and values", '{"enable_thinking": false}')
    return {"tools": tools, **(options or {})}


def _read_json(row: Mapping[str, Any], column: str, kind: type, kind_in_words: str, example: str) -> Any:
    """The value of a column, which may be JSON; None where the row has none.

    Raises:
        ValueError: it is not JSON, or of another kind.
    """
    given = row.get(column)
    # A cell of a table that holds nothing is an empty text in a file, and not a number in pandas.
    if (isinstance(given, str) and not given.strip()) or (isinstance(given, float) and math.isnan(given)):
        return None
    read = given
    if isinstance(given, str):
        try:
            read = json.loads(given)
        except ValueError as error:
            raise ValueError(
                f"The column {column!r} holds {_shortened(given)!r}, which is not JSON: {error}. Write {example}, or "
                "leave the cell empty."
            ) from None
    read = without_nulls(read)
    if read is not None and not isinstance(read, kind):
        raise ValueError(
            f"The column {column!r} holds {_shortened(str(given))!r}, and must hold {kind_in_words}. Write {example}, "
            "or leave the cell empty."
        )
    return read


def without_nulls(value: Any) -> Any:
    """A value of JSON without the keys that hold null, at any depth."""
    # Of pandas, whose cells hold lists as arrays.
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list | tuple) else value


def _as_text_message(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is text.

    Raises:
        ValueError: it has no role, or no text. The message says which it is.
    """
    if not isinstance(message.get("role"), str):
        raise ValueError(
            f"Message {number} has the keys {sorted(message)}, and no `role`. A message is {_EXAMPLE}; rename `from` "
            "and `value` to these."
        )
    content = message.get("content")
    if content is None:
        if "tool_calls" in message:
            return dict(message)
        raise ValueError(f"Message {number}, of the {message['role']}, has no content. A message is {_EXAMPLE}.")
    return {**message, "content": _text_of(number, content)}


def _text_of(number: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"The content of message {number} is {content!r}, and must be text. A message is {_EXAMPLE}.")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
            raise ValueError(
                f"The content of message {number} has a part of the type {kind!r}, and only text is read. Parts are "
                "{'type': 'text', 'text': '...'}. Leave the others out, or describe them in words."
            )
        texts.append(text)
    return "".join(texts)


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    if "content" not in message:
        return dict(message)
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _holds(text: str, message: str) -> bool:
    """Whether a rendered chat holds the text of a message, but for white space, JSON's escapes and its thoughts."""
    message = message.rpartition("</think>")[2].strip()
    if message in text:
        return True
    escaped = json.dumps(message, ensure_ascii=False)[1:-1]
    return escaped in text or "".join(message.split()) in "".join(text.split())


def _cure_of(refusal: str) -> str:
    if "system" in refusal.lower():
        return "Put the system message's text at the beginning of the first user message."
    if "alternat" in refusal.lower():
        return "Join messages of one role that follow each other, and begin with the user."
    return "Change the messages to what the template takes, set `tokenizer.chat_template`, or give the prompt as text."


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length] + "..."


def as_text(text: Text) -> str:
    """A text, or the contents of a chat's messages; where they are several, each behind its role."""
    if isinstance(text, str):
        return text
    contents = [(str(message.get("role", "")), _words_of(message)) for message in text]
    if len(contents) == 1:
        return contents[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in contents)


def _words_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")
