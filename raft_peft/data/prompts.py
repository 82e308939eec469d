"""From a row to tokens: the prompt's ids, ending exactly where the number begins, and the ids of the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raft_peft.grid import NumberGrid
from raft_peft.grid.number_end import NumberEnd
from raft_peft.grid.resolution import Context, GridResolver, default_separator

# Enough tokens before the number to fix how it is tokenized; see PromptEncoder._read_ids.
_TAIL_LENGTHS = (32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
_ROWS_SHOWN = 5


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt ready for the model.

    Attributes:
        input_ids: the tokens of the prompt; the number would be the next token.
        grid_token_ids: the tokens of each grid value after this prompt, in the grid's order, with those of its end
            where that is a token or a text.
        was_cut: whether the beginning was cut off to fit `max_length`.
        target_ids: the tokens of the target's text, where one was given.
    """

    input_ids: list[int]
    grid_token_ids: tuple[tuple[int, ...], ...]
    was_cut: bool
    target_ids: list[int] = field(default_factory=list)


def as_rows(prompts: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Prompts as rows: texts and chats as the `prompt` of one, rows as they are.

    Raises:
        ValueError: it is one prompt, and no list of them.
    """
    if isinstance(prompts, str | Mapping):
        raise ValueError("`prompts` must be a list of prompts. For one prompt, pass a list of one: [prompt].")
    for prompt in prompts:
        if isinstance(prompt, Mapping) and "role" in prompt:
            raise ValueError("`prompts` must be a list of chats. For one chat, pass a list of one: [messages].")
        yield prompt if isinstance(prompt, Mapping) else {"prompt": prompt}


class PromptEncoder:
    """Encodes rows of text, chat messages or token ids.

    Args:
        tokenizer: a Hugging Face tokenizer.
        grid: the numbers that the model may answer with.
        separator: the text between prompt and number. By default one space after a plain prompt that does not end
            in white space, and nothing after a chat template's generation prompt.
        max_length: the most tokens that a prompt may have. A longer one loses its beginning, never its end, where
            the question stands; leading special tokens are kept. None for no limit.
        number_end: what must follow a number; by default nothing, see [`NumberEnd`].
        processor: renders chat messages where that is not the tokenizer's task (vision-language models).
    """

    def __init__(
        self,
        tokenizer: Any,
        grid: NumberGrid,
        *,
        separator: str | None = None,
        max_length: int | None = None,
        number_end: NumberEnd | None = None,
        processor: Any = None,
    ):
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length={max_length} leaves no room for a prompt. Set it to 2 or more, or None.")
        self.tokenizer = tokenizer
        self.grid = grid
        self.separator = separator
        self.max_length = max_length
        self.processor = tokenizer if processor is None else processor
        self._resolver = GridResolver(grid, tokenizer, number_end)

    def encode(
        self, rows: Sequence[Mapping[str, Any]], first_row: int = 0, targets: Sequence[str] | None = None
    ) -> list[EncodedPrompt]:
        """Encode rows, each holding `prompt` (text or chat messages) or `input_ids`.

        A chat row may also hold `tools` and `chat_template_kwargs`, as TRL's rows may.

        Args:
            rows: the rows.
            first_row: the number of the first of them in its dataset, for error messages.
            targets: the text of each row's target, to be encoded behind its prompt.

        Raises:
            ValueError: rows that cannot be encoded: an empty prompt, a prompt into which the number merges, a grid
                that this tokenizer cannot write. The message names the rows and the cure.
        """
        readings: list[tuple[list[int], Context]] = []
        errors: list[tuple[int, str]] = []
        for number, row in enumerate(rows, first_row):
            try:
                readings.append(self._read(row))
            except ValueError as error:
                errors.append((number, str(error)))
        if errors:
            raise rows_error(errors)

        encoded = []
        contexts = [context for _, context in readings]
        resolved_grids = self._resolver.resolve(contexts, targets)
        for number, ((ids_before, _), resolved) in enumerate(zip(readings, resolved_grids, strict=True), first_row):
            if isinstance(resolved, ValueError):
                errors.append((number, str(resolved)))
                continue
            prompt_ids = [*ids_before, *resolved.prompt_ids]
            input_ids = self._cut(prompt_ids)
            was_cut = len(input_ids) < len(prompt_ids)
            encoded.append(EncodedPrompt(input_ids, resolved.token_ids, was_cut, list(resolved.target_ids)))
        if errors:
            raise rows_error(errors)
        return encoded

    def _read(self, row: Mapping[str, Any]) -> tuple[list[int], Context]:
        """The row's context, and the ids that stand before its text."""
        if row.get("input_ids") is not None:
            return self._read_ids(list(row["input_ids"]))
        prompt = row.get("prompt")
        if isinstance(prompt, str):
            separator = default_separator(prompt) if self.separator is None else self.separator
            return [], Context(prompt, separator)
        if isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(turn, Mapping) for turn in prompt):
            return [], self._read_chat(prompt, row)
        raise ValueError(
            f"The prompt is {prompt!r}. It must be a text, or a list of chat messages such as "
            "[{'role': 'user', 'content': '...'}], and not be empty."
        )

    def _read_chat(self, messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> Context:
        if getattr(self.processor, "chat_template", None) is None:
            raise ValueError(
                "The prompt is a list of chat messages, but the tokenizer has no chat template. Set "
                "`tokenizer.chat_template` or `chat_template_path`, use the instruction-tuned model's tokenizer, or "
                "give the prompt as text."
            )
        tools = row.get("tools")  # a list, or JSON as TRL's rows may hold
        prefilled = messages[-1].get("role") == "assistant"
        text = self.processor.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=not prefilled,
            continue_final_message=prefilled,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            **(row.get("chat_template_kwargs") or {}),
        )
        by_default = default_separator(text) if prefilled else ""
        return Context(text, by_default if self.separator is None else self.separator, add_special_tokens=False)

    def _read_ids(self, ids: list[int]) -> tuple[list[int], Context]:
        """The text of a pre-tokenized row's end, as much of it as the tokenizer encodes back to the same ids."""
        if not ids:
            raise ValueError(
                "The row's input_ids are empty. They must hold the prompt, up to where the number begins."
            )
        for length in _TAIL_LENGTHS:
            tail = ids[-length:]
            text = self.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if self.tokenizer(text, add_special_tokens=False)["input_ids"] == tail:
                break
        else:
            raise ValueError(
                f"The row's input_ids end in {self.tokenizer.convert_ids_to_tokens(ids[-3:])}, which the tokenizer "
                "does not give for any text, so the number's tokens are not known. Give the prompt as text."
            )
        if self.separator is not None:
            separator = self.separator
        else:
            separator = "" if ids[-1] in self.tokenizer.all_special_ids else default_separator(text)
        return ids[: len(ids) - len(tail)], Context(text, separator, add_special_tokens=False)

    def _cut(self, ids: list[int]) -> list[int]:
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        leading = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        return leading + ids[len(ids) - self.max_length + len(leading) :]


def rows_error(errors: Sequence[tuple[int, str]]) -> ValueError:
    """One error that names the rows and what is wrong with each, the first few in full."""
    shown = "\n".join(f"  row {row}: {reason}" for row, reason in errors[:_ROWS_SHOWN])
    more = f"\n  and {len(errors) - _ROWS_SHOWN} more" if len(errors) > _ROWS_SHOWN else ""
    return ValueError(f"{len(errors)} row(s) cannot be used:\n{shown}{more}")
