"""From a row to tokens: the prompt's ids, ending exactly where the number begins, and the ids of the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raft_peft.data.chats import render_chat
from raft_peft.data.reasoning.context import ReasonedContext, reasoned_context
from raft_peft.data.reasoning.reasonings import REASONING, ScorePrefix, check_reasoning, reasonings_of
from raft_peft.data.reasoning.turns import check_turn_is_open, check_turn_stays_open
from raft_peft.data.thoughts import is_in_thought
from raft_peft.data.token_rows import ids_of_prompt
from raft_peft.grid import NumberGrid
from raft_peft.grid.number_end import NumberEnd
from raft_peft.grid.resolution import Context, GridResolver, default_separator, leading_special_ids

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
        was_trimmed: whether padding or an end of sequence was taken off a tokenized row.
        is_in_thought: whether it ends inside an open thought of a thinking model.
        lost_system: whether it is a chat that was cut, and a system message was its beginning.
        target_ids: the tokens of the target's text, where one was given.
        reasoning_tokens: how many of the last tokens of `input_ids` are the row's reasoning with the words that lead
            to the score; 0 where it has none.
        reasoning_was_cut: whether the end of the reasoning was cut off to fit `max_length`.
    """

    input_ids: list[int]
    grid_token_ids: tuple[tuple[int, ...], ...]
    was_cut: bool
    target_ids: list[int] = field(default_factory=list)
    was_trimmed: bool = False
    is_in_thought: bool = False
    lost_system: bool = False
    reasoning_tokens: int = 0
    reasoning_was_cut: bool = False


@dataclass(frozen=True)
class _Reading:
    """A row as read.

    Attributes:
        ids_before: the ids that stand before the text of `context`.
        context: what stands before the number.
        was_trimmed, is_in_thought: as in [`EncodedPrompt`].
        has_system: whether it is a chat that begins with a system message.
        reasoned: the same with what leads to the score behind the prompt; None without a score prefix.
        has_reasoning: whether a reasoning is part of that.
    """

    ids_before: list[int]
    context: Context
    was_trimmed: bool = False
    is_in_thought: bool = False
    has_system: bool = False
    reasoned: ReasonedContext | None = None
    has_reasoning: bool = False


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
        score_prefix: the words between a row's reasoning and its number; they stand before the number of a row without
            reasoning, too. None where rows have no reasoning.
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
        score_prefix: ScorePrefix | None = None,
    ):
        check_max_length(max_length)
        self.tokenizer = tokenizer
        self.grid = grid
        self.separator = separator
        self.max_length = max_length
        self.processor = tokenizer if processor is None else processor
        self.score_prefix = score_prefix
        self._resolver = GridResolver(grid, tokenizer, number_end)

    def encode(
        self,
        rows: Sequence[Mapping[str, Any]],
        first_row: int = 0,
        targets: Sequence[str] | None = None,
        numbers: Sequence[int] | None = None,
        *,
        is_written_by_model: bool = False,
    ) -> list[EncodedPrompt]:
        """Encode rows, each holding `prompt` (text or chat messages) or `input_ids`.

        Behind the prompt of a row may stand its `reasoning`, a text, where there is a `score_prefix`.
        A chat row may also hold `tools` and `chat_template_kwargs`, as TRL's rows may, and one of ids the
        `attention_mask` that tells its padding.

        Args:
            rows: the rows.
            first_row: the number of the first of them in its dataset, for error messages.
            targets: the text of each row's target, to be encoded behind its prompt.
            numbers: the number of each row in its dataset, where they do not follow each other. Rows of one number are
                one prompt with several reasonings; where it is cut, it is cut alike for all of them.
            is_written_by_model: whether the reasonings are what a model has written, and are read whatever they hold.

        Raises:
            ValueError: rows that cannot be encoded: an empty prompt, a prompt into which the number merges, a grid
                that this tokenizer cannot write. The message names the rows and the cure.
        """
        readings: list[_Reading] = []
        errors: list[tuple[int, str]] = []
        numbers = range(first_row, first_row + len(rows)) if numbers is None else numbers
        for number, row in zip(numbers, rows, strict=True):
            try:
                readings.append(self._read(row, is_written_by_model=is_written_by_model))
            except ValueError as error:
                errors.append((number, str(error)))
        if errors:
            raise rows_error(errors)

        encoded = []
        contexts = [reading.context for reading in readings]
        resolved_grids = self._resolver.resolve(contexts, targets)
        too_many = self._too_many_tokens(numbers, readings, resolved_grids)
        for number, reading, resolved in zip(numbers, readings, resolved_grids, strict=True):
            if isinstance(resolved, ValueError):
                prefix = (
                    "" if self.score_prefix is None else f" Here `score_prefix={self.score_prefix.text!r}` ends it."
                )
                errors.append((number, f"{resolved}{prefix}"))
                continue
            prompt_ids = [*reading.ids_before, *resolved.prompt_ids]
            input_ids = cut_beginning(prompt_ids, self.tokenizer, len(prompt_ids) - too_many[number])
            was_cut = len(input_ids) < len(prompt_ids)
            reasoned = reading.reasoned
            behind = 0 if reasoned is None else reasoned.tokens_behind_prompt(resolved.prompt_ids)
            if was_cut and behind >= len(input_ids) - 1:
                errors.append((number, self._no_room(behind)))
                continue
            encoded.append(
                EncodedPrompt(
                    input_ids,
                    resolved.token_ids,
                    was_cut=was_cut,
                    target_ids=list(resolved.target_ids),
                    was_trimmed=reading.was_trimmed,
                    is_in_thought=reading.is_in_thought,
                    lost_system=was_cut and reading.has_system,
                    reasoning_tokens=behind if reading.has_reasoning else 0,
                    reasoning_was_cut=reasoned is not None and reasoned.was_cut,
                )
            )
        if errors:
            raise rows_error(errors)
        return encoded

    def _too_many_tokens(
        self, numbers: Sequence[int], readings: Sequence[_Reading], resolved_grids: Sequence[Any]
    ) -> dict[int, int]:
        """How many tokens each row loses at its beginning: those that its longest reasoning is too long by."""
        too_many = dict.fromkeys(numbers, 0)
        for number, reading, resolved in zip(numbers, readings, resolved_grids, strict=True):
            if self.max_length is not None and not isinstance(resolved, ValueError):
                length = len(reading.ids_before) + len(resolved.prompt_ids)
                too_many[number] = max(too_many[number], length - self.max_length)
        return too_many

    def _no_room(self, tokens: int) -> str:
        words = "" if self.score_prefix is None else self.score_prefix.text
        return (
            f"`max_length={self.max_length}` leaves no room for the prompt before the {tokens} tokens that end in "
            f"{words!r}, the words that lead to the score. Raise `max_length`, or shorten `score_prefix`."
        )

    def _read(self, row: Mapping[str, Any], *, is_written_by_model: bool) -> _Reading:
        reading = self._read_prompt(row)
        prefix = self.score_prefix
        reasoning = row.get(REASONING) if is_written_by_model else _only_reasoning(row)
        if prefix is None:
            if reasoning is not None:
                raise ValueError(
                    "The row has a `reasoning`, and no words are known that lead from it to the score. Pass "
                    "`score_prefix`, such as '\\n[RESULT] ', or drop the column."
                )
            return reading
        _check_not_empty(reading)
        check_turn_is_open(reading.context.text, self.tokenizer)
        if reasoning is not None and not is_written_by_model:
            check_reasoning(reasoning, prefix, self.grid)
            check_turn_stays_open(reasoning, self.tokenizer)
        reasoned = reasoned_context(
            reading.ids_before, reading.context, reasoning, prefix, self.tokenizer, self.max_length
        )
        return replace(
            reading,
            ids_before=reasoned.ids_before,
            context=reasoned.context,
            is_in_thought=prefix.is_in_thought(reasoning, opened=reading.is_in_thought),
            reasoned=reasoned,
            has_reasoning=reasoning is not None,
        )

    def prompts_alone(self, rows: Sequence[Mapping[str, Any]], first_row: int, room: int) -> list[list[int]]:
        """The tokens of prompts, behind which a reasoning is to be written.

        Args:
            rows: as for `encode`.
            first_row: the number of the first of them, for messages.
            room: how many tokens of `max_length` the reasoning takes; the prompt keeps half of it at least.

        Raises:
            ValueError: rows without a prompt. The message names them.
        """
        most = None if self.max_length is None else max(self.max_length - room, self.max_length // 2, 2)
        found: list[list[int]] = []
        errors: list[tuple[int, str]] = []
        for number, row in enumerate(rows, first_row):
            try:
                reading = self._read_prompt(row)
                context = reading.context
                _check_not_empty(reading)
                check_turn_is_open(context.text, self.tokenizer)
            except ValueError as error:
                errors.append((number, str(error)))
                continue
            ids = self.tokenizer(context.text, add_special_tokens=False)["input_ids"]
            leading = leading_special_ids(self.tokenizer, "a") if context.add_special_tokens else ()
            leading = () if tuple(ids[: len(leading)]) == leading else leading
            found.append(cut_beginning([*reading.ids_before, *leading, *ids], self.tokenizer, most))
        if errors:
            raise rows_error(errors)
        return found

    def _read_prompt(self, row: Mapping[str, Any]) -> _Reading:
        if row.get("input_ids") is not None:
            return self._read_ids(row)
        prompt: Any = row.get("prompt")
        # Of pandas, whose cells hold lists as arrays.
        prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        if isinstance(prompt, str):
            separator = default_separator(prompt) if self.separator is None else self.separator
            return _Reading([], Context(prompt, separator), is_in_thought=is_in_thought(prompt))
        if isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(turn, Mapping) for turn in prompt):
            return self._read_chat(prompt, row)
        if "prompt" not in row and "input_ids" not in row:
            raise ValueError(
                f"The row has the columns {sorted(map(str, row))}, and neither `prompt` nor `input_ids`. Rename the "
                "column of the text to `prompt`."
            )
        if prompt is None:
            raise ValueError("The prompt is empty. Fill the column `prompt`, or drop the row.")
        raise ValueError(
            f"The prompt is {prompt!r}. It must be a text, or a list of chat messages such as "
            "[{'role': 'user', 'content': '...'}], and not be empty."
        )

    def _read_chat(self, messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> _Reading:
        chat = render_chat(self.processor, messages, row)
        by_default = default_separator(chat.text) if chat.begins_answer else ""
        separator = by_default if self.separator is None else self.separator
        context = Context(chat.text, separator, add_special_tokens=False)
        has_system = messages[0].get("role") in ("system", "developer")
        return _Reading([], context, is_in_thought=chat.is_in_thought, has_system=has_system)

    def _read_ids(self, row: Mapping[str, Any]) -> _Reading:
        """The text of a pre-tokenized row's end, as much of it as the tokenizer encodes back to the same ids."""
        ids, was_trimmed = ids_of_prompt(row, self.tokenizer)
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
        context = Context(text, separator, add_special_tokens=False)
        return _Reading(ids[: len(ids) - len(tail)], context, was_trimmed, is_in_thought(text))


def check_max_length(max_length: int | None) -> None:
    """Raise a ValueError where a limit leaves no token of a prompt."""
    if max_length is not None and max_length < 2:
        raise ValueError(
            f"`max_length={max_length}` leaves no room for a prompt. Set it to 2 or more, or leave it out."
        )


def cut_beginning(ids: list[int], tokenizer: Any, max_length: int | None) -> list[int]:
    """The tokens of a prompt without so much of its beginning that `max_length` are left, or all of them.

    Leading special tokens stay.
    """
    if max_length is None or len(ids) <= max_length:
        return ids

    def is_special(token_id: int) -> bool:
        without, text = (tokenizer.decode([token_id], skip_special_tokens=skip) for skip in (True, False))
        return without != text

    # One token of the prompt's end remains at least.
    leading = list(itertools.takewhile(is_special, ids[: max_length - 1]))
    return leading + ids[len(ids) - max_length + len(leading) :]


def rows_error(errors: Sequence[tuple[int, str]]) -> ValueError:
    """One error that names the rows and what is wrong with each, the first few in full."""
    shown = "\n".join(f"  row {row}: {reason}" for row, reason in errors[:_ROWS_SHOWN])
    more = f"\n  and {len(errors) - _ROWS_SHOWN} more" if len(errors) > _ROWS_SHOWN else ""
    return ValueError(f"{len(errors)} row(s) cannot be used:\n{shown}{more}")


def _check_not_empty(reading: _Reading) -> None:
    if not reading.context.text.strip() and not reading.ids_before:
        raise ValueError("The prompt is empty. The model needs a text that the reasoning follows.")


def _only_reasoning(row: Mapping[str, Any]) -> str | None:
    """The reasoning of a row; None where it has none.

    Raises:
        ValueError: it has several, or what is no text.
    """
    found = reasonings_of(row)
    if len(found) > 1:
        raise ValueError(f"The row has {len(found)} reasonings, and one is read here. Make a row of each.")
    return found[0] if found else None
