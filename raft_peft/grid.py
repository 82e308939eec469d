"""The grid: the numbers a model may answer with, as text and as token ids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


def number_text(value: float) -> str:
    """The text of a number, without exponent and without trailing zeros: 1.0 is "1", 0.5 is "0.5"."""
    rounded = float(f"{value:.12g}") + 0.0  # + 0.0 turns -0.0 into 0.0
    return np.format_float_positional(rounded, trim="-")


@dataclass(frozen=True, init=False)
class NumberGrid:
    """The finite set of numbers over which the prediction is an expectation (the paper's grid, eq. 5 and 10).

    Args:
        values: the numbers, each written as its shortest decimal text; or a mapping `{number: text}` where the
            model answers with something else, such as letters, months or reversed digits (the paper's eq. 15); or
            another `NumberGrid`.

    Attributes:
        values: the numbers as floats, in the order given, in the unit of the labels.
        texts: the text of each number, in the same order.

    Raises:
        ValueError: fewer than two values; a value that is not a finite number; a value or a text given twice; an
            empty text.

    >>> NumberGrid([1, 2.0, 0.5]).texts
    ('1', '2', '0.5')
    >>> NumberGrid({1: "A", 0: "B"}).values
    (1.0, 0.0)
    """

    values: tuple[float, ...]
    texts: tuple[str, ...]

    def __init__(self, values: Iterable[float] | Mapping[float, str] | NumberGrid):
        if isinstance(values, NumberGrid):
            pairs: list[tuple[Any, Any]] = list(zip(values.values, values.texts, strict=True))
        elif isinstance(values, Mapping):
            pairs = list(values.items())
        elif isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(
                f"The grid must be a list of numbers or a mapping {{number: text}}, got {values!r}. "
                "Example: grid=[1, 2, 3, 4, 5]."
            )
        else:
            pairs = [(value, None) for value in values]

        numbers = tuple(_finite_number(value) for value, _ in pairs)
        texts = tuple(
            number_text(number) if text is None else _number_word(number, text)
            for number, (_, text) in zip(numbers, pairs, strict=True)
        )
        if len(numbers) < 2:
            raise ValueError(
                f"The grid needs at least two values to predict between, got {list(numbers)}. "
                "Example: grid=[1, 2, 3, 4, 5]."
            )
        for name, items in (("value", numbers), ("text", texts)):
            repeated = sorted({item for item in items if items.count(item) > 1}, key=items.index)
            if repeated:
                raise ValueError(
                    f"The grid has the {name} {repeated[0]!r} more than once; each {name} may stand in it once only."
                )
        object.__setattr__(self, "values", numbers)
        object.__setattr__(self, "texts", texts)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[tuple[float, str]]:
        return iter(zip(self.values, self.texts, strict=True))

    @property
    def is_plain(self) -> bool:
        """Whether every number is written as itself, so that a list of values says all."""
        return all(text == number_text(value) for value, text in self)

    def resolve(self, tokenizer: Any, prompt: str, *, separator: str | None = None) -> ResolvedGrid:
        """Find the token ids of every value in the context of a plain-text prompt.

        Args:
            tokenizer: a Hugging Face tokenizer.
            prompt: the text after which the number stands.
            separator: the text between prompt and number; by default one space, or nothing where the prompt
                already ends in white space.

        Returns:
            The ids of the prompt and, for each value in the order given, the tuple of its ids.

        Raises:
            ValueError: the prompt is empty; a value merges into the prompt's last token, has a token that the
                tokenizer does not know, or has the same tokens as another value.
        """
        context = Context(prompt, default_separator(prompt) if separator is None else separator)
        resolved = resolve_in_contexts(self, tokenizer, [context])[0]
        if isinstance(resolved, ValueError):
            raise resolved
        return resolved


@dataclass(frozen=True)
class Context:
    """What stands before the number.

    Attributes:
        text: the prompt as text.
        separator: the text between the prompt and the number; may be empty.
        add_special_tokens: whether the tokenizer puts its leading special tokens (such as `<bos>`) in front. False
            for text from a chat template, which holds them already.
    """

    text: str
    separator: str
    add_special_tokens: bool = True


@dataclass(frozen=True)
class ResolvedGrid:
    """A grid as token ids, in the context of one prompt.

    Attributes:
        prompt_ids: the ids of the prompt, leading special tokens included, ending where the number begins.
        token_ids: for each value of the grid, in order, the ids of the number; usually one id each.
        target_ids: the ids of the target's text after the same prompt; empty where none was asked for.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[tuple[int, ...], ...]
    target_ids: tuple[int, ...] = ()


def default_separator(text: str) -> str:
    """One space, or nothing where the text already ends in white space."""
    return "" if text[-1:].isspace() else " "


def resolve_in_contexts(
    grid: NumberGrid, tokenizer: Any, contexts: Sequence[Context], targets: Sequence[str] | None = None
) -> list[ResolvedGrid | ValueError]:
    """Resolve the grid in many contexts with one call of the tokenizer.

    Each value is tokenized as part of the whole sentence, prompt + separator + text. The tokens that all these
    sentences share with the tokenized prompt + separator are the prompt, the rest is the number. So " 3" is the one
    token `Ġ3` where the vocabulary has it, and `Ġ`, `3` where it has not; then the lone space ends the prompt.

    Args:
        grid: the numbers.
        tokenizer: a Hugging Face tokenizer.
        contexts: what stands before the number.
        targets: for each context a text to resolve with the grid, such as that of a number between grid values.

    Returns:
        For each context the resolved grid, or the error that says why it has none. Errors are returned, not raised,
        so that the caller can name every row that is wrong.
    """
    texts = [("", *grid.texts)] * len(contexts)
    if targets is not None:
        texts = [(*row, target) for row, target in zip(texts, targets, strict=True)]
    sentences = [
        context.text + context.separator + text for context, row in zip(contexts, texts, strict=True) for text in row
    ]
    if not sentences:
        return []
    encoded = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    leading_ids = _leading_special_ids(tokenizer)
    stride = len(texts[0])
    resolved: list[ResolvedGrid | ValueError] = []
    for row, context in enumerate(contexts):
        opening, *whole = encoded[row * stride : (row + 1) * stride]
        try:
            prompt_length = _prompt_length(grid.texts, tokenizer, context, opening, whole[: len(grid)])
            token_ids = tuple(tuple(ids[prompt_length:]) for ids in whole[: len(grid)])
            _check_number_tokens(grid, tokenizer, context, token_ids)
            target_ids = _target_ids(tokenizer, context, opening[:prompt_length], whole[len(grid) :])
        except ValueError as error:
            resolved.append(error)
            continue
        prompt_ids = tuple(opening[:prompt_length])
        if context.add_special_tokens and prompt_ids[: len(leading_ids)] != leading_ids:
            prompt_ids = leading_ids + prompt_ids
        resolved.append(ResolvedGrid(prompt_ids, token_ids, target_ids))
    return resolved


def single_token_ids(grid: NumberGrid, tokenizer: Any, resolved: ResolvedGrid) -> tuple[int, ...]:
    """The one token id of each value.

    Raises:
        ValueError: a value needs several tokens.
    """
    for (value, text), ids in zip(grid, resolved.token_ids, strict=True):
        if len(ids) > 1:
            raise ValueError(
                f"The grid value {number_text(value)} (text {text!r}) is {len(ids)} tokens under this tokenizer: "
                f"{_token_texts(tokenizer, ids)}. Every value must be one token. Use a grid of single tokens, such "
                "as the digits 0 to 9 with the labels scaled to them, or give each number a text that is one token: "
                "grid={10: 'A', 20: 'B', ...}."
            )
    return tuple(ids[0] for ids in resolved.token_ids)


def _finite_number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"The grid value {value!r} is not a number. Example: grid=[1, 2, 3, 4, 5].") from None
    if not math.isfinite(number):
        raise ValueError(f"The grid value {value!r} is not finite. An expectation needs finite values.")
    return number + 0.0


def _number_word(number: float, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"The grid maps {number_text(number)} to {text!r}; it must be a text that is not empty. "
            "Example: grid={1: 'A', 2: 'B'}."
        )
    return text


def _leading_special_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer puts before every plain text, such as `<bos>`; what it puts after is left out."""
    bare = tokenizer("1", add_special_tokens=False)["input_ids"]
    full = tokenizer("1")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def _prompt_length(
    texts: Sequence[str], tokenizer: Any, context: Context, opening: list[int], whole: list[list[int]]
) -> int:
    if not context.text.strip():
        raise ValueError("The prompt is empty. The model needs a text after which the number stands.")
    if all(ids[: len(opening)] == opening for ids in whole):
        return len(opening)
    shared = [_common_prefix_length(opening, ids) for ids in whole]
    length = min(shared)
    # The tokens lost from the prompt may only be white space, which then is part of the number's own token.
    if tokenizer.decode(opening[length:], skip_special_tokens=False).strip():
        index = shared.index(length)
        raise ValueError(
            f"The number {texts[index]!r} merges into the end of the prompt {_tail(context.text)!r}: the "
            f"tokenizer gives {_token_texts(tokenizer, opening[length:])} without the number and "
            f"{_token_texts(tokenizer, whole[index][length:])} with it. End the prompt with a space or a new line, "
            "or set another separator."
        )
    return length


def _target_ids(tokenizer: Any, context: Context, prompt: list[int], sentences: list[list[int]]) -> tuple[int, ...]:
    """The ids of the target behind the prompt of the grid; empty where there is no target."""
    if not sentences:
        return ()
    (ids,) = sentences
    if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
        raise ValueError(
            f"The target's text begins inside the prompt {_tail(context.text)!r}: the tokenizer gives "
            f"{_token_texts(tokenizer, ids[-6:])} with it, where the grid's numbers begin behind "
            f"{_token_texts(tokenizer, prompt[-3:])}. Scale the labels so that they are written like the grid "
            "(without a sign, say), or set another separator."
        )
    return tuple(ids[len(prompt) :])


def _check_number_tokens(
    grid: NumberGrid, tokenizer: Any, context: Context, token_ids: tuple[tuple[int, ...], ...]
) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for text, ids in zip(grid.texts, token_ids, strict=True):
        if not ids or tokenizer.unk_token_id in ids:
            raise ValueError(
                f"The tokenizer has no token for the grid text {text!r} after {_tail(context.text)!r}. Choose values "
                "that it can write, or give them other texts: grid={1: 'A', 2: 'B'}."
            )
        if ids in seen:
            raise ValueError(
                f"The grid texts {seen[ids]!r} and {text!r} are the same tokens {_token_texts(tokenizer, ids)}, so "
                "the model cannot tell them apart. Give them texts that differ under this tokenizer."
            )
        seen[ids] = text


def _common_prefix_length(ids: Sequence[int], other_ids: Sequence[int]) -> int:
    length = 0
    for one, other in zip(ids, other_ids, strict=False):
        if one != other:
            break
        length += 1
    return length


def _token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


def _tail(text: str, length: int = 60) -> str:
    return text if len(text) <= length else "..." + text[-length:]
