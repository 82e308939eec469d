"""The grid: the numbers a model may answer with, and their texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raft_peft.grid.number_text import decimals_of, meant_number, number_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raft_peft.grid.resolution import ResolvedGrid

# The help of an option that `NumberGrid.parse` reads.
GRID_HELP = (
    "The numbers that the model may answer with: 1,2,3,4,5 or -4..4 or 0..5..0.5, or with texts of their own, "
    "0=no,1=yes"
)


@dataclass(frozen=True, init=False)
class NumberGrid:
    """The finite set of numbers over which the prediction is an expectation (the paper's grid, eq. 5 and 10).

    It may be one number alone, such as 5, where the expectation is over the whole vocabulary: the prediction is then
    5 p(5 | x), from 0 to 5 (the paper's Table 13).

    Args:
        values: the numbers, each written as its shortest decimal text (a float32 of 0.1 is "0.1"); or a mapping
            `{number: text}` where the model answers with something else, such as letters, months or reversed digits
            (the paper's eq. 15); or another `NumberGrid`.

    Attributes:
        values: the numbers as floats, in the order given, in the unit of the labels.
        texts: the text of each number, in the same order.

    Raises:
        ValueError: no value; a value that is not a finite number; a value or a text given twice; an empty text.

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
                "Example: `grid=[1, 2, 3, 4, 5]`."
            )
        else:
            pairs = [(value, None) for value in values]

        numbers = tuple(_finite_number(value) for value, _ in pairs)
        texts = tuple(
            number_text(number) if text is None else _number_word(number, text)
            for number, (_, text) in zip(numbers, pairs, strict=True)
        )
        if not numbers:
            raise ValueError("The grid is empty. Give it at least one number. Example: `grid=[1, 2, 3, 4, 5]`.")
        for name, items in (("value", numbers), ("text", texts)):
            repeated = sorted({item for item in items if items.count(item) > 1}, key=items.index)
            if repeated:
                raise ValueError(f"The grid has the {name} {repeated[0]!r} more than once; use each {name} once.")
        object.__setattr__(self, "values", numbers)
        object.__setattr__(self, "texts", texts)

    @classmethod
    def spaced(cls, low: float, high: float, granularity: float, *, decimals: int | None = None) -> NumberGrid:
        """Numbers from low to high at even distances, all with the same number of decimals (the paper's Table 17).

        Args:
            low: the least number.
            high: the greatest number, a whole number of steps above it.
            granularity: the distance of two neighbours.
            decimals: digits behind the point; by default as many as low and granularity need.

        Raises:
            ValueError: the steps do not lead from low to high, or the decimals cannot write them.

        >>> NumberGrid.spaced(0, 1, 0.5).texts
        ('0.0', '0.5', '1.0')
        """
        needed = max(decimals_of(low), decimals_of(granularity))
        decimals = needed if decimals is None else decimals
        if not granularity > 0 or not high > low:
            raise ValueError(f"A grid from {low} to {high} in steps of {granularity} is empty. Example: 0, 5, 0.1.")
        if decimals < needed:
            raise ValueError(f"{decimals} decimals cannot write steps of {granularity} from {low}; {needed} can.")
        low, high, granularity = (float(number_text(number)) for number in (low, high, granularity))
        steps = round((high - low) / granularity)
        if number_text(low + steps * granularity) != number_text(high):
            steps_and_ends = f"{number_text(granularity)} do not lead from {number_text(low)} to {number_text(high)}"
            raise ValueError(f"Steps of {steps_and_ends}. Choose one that divides them.")
        values = [round(low + step * granularity, needed) + 0.0 for step in range(steps + 1)]
        return cls({value: f"{value:.{decimals}f}" for value in values})

    @classmethod
    def parse(cls, text: str) -> NumberGrid:
        """A grid as it stands on a command line: numbers, ranges as low..high or low..high..step, or number=text.

        Raises:
            ValueError: it is nothing of these, or no grid.

        >>> NumberGrid.parse("1,2,3").values
        (1.0, 2.0, 3.0)
        >>> NumberGrid.parse("0..1..0.5").texts
        ('0.0', '0.5', '1.0')
        >>> NumberGrid.parse("0=no,1=yes").texts
        ('no', 'yes')
        """
        try:
            if ".." in text:
                low, high, *step = (float(number) for number in text.split(".."))
                return cls.spaced(low, high, *(step or [1.0]))
            parts = [part.partition("=") for part in text.split(",")]
            pairs = [(float(number), word if equals else None) for number, equals, word in parts]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"The grid {text!r} cannot be read. Write numbers with commas as 1,2,3,4,5, a range as 0..100 or "
                "0..5..0.5, or numbers with their texts as 0=no,1=yes."
            ) from error
        grid = cls([number for number, _ in pairs])  # which refuses a number that stands there twice
        words = [word for _, word in pairs]
        return cls({one: text if word is None else word for (one, text), word in zip(grid, words, strict=True)})

    def resolve(
        self,
        tokenizer: Any,
        prompt: str,
        *,
        separator: str | None = None,
        number_end: str = "grid",
        end_every_number: bool = False,
    ) -> ResolvedGrid:
        """The tokens at which this grid is read behind a prompt, as training and prediction find them for each row.

        With the tokenizer of SmolLM2, which writes a space and then digit by digit:

        ```python
        resolved = NumberGrid([1, 10]).resolve(tokenizer, "Score:")
        tokenizer.convert_ids_to_tokens(resolved.prompt_ids)  # ['Score', ':', 'Ġ']
        resolved.token_ids  # ((33,), (33, 32)): "1" is one token, "10" is two
        ```

        Args:
            tokenizer: a Hugging Face tokenizer.
            prompt: the text after which the number stands. For a chat, render it first:
                `tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)`, and set
                `separator=""`.
            separator: the text between prompt and number; by default one space, or nothing where the prompt already
                ends in white space.
            number_end: what must follow a number that another begins with: `"grid"`, `"eos"`, `"end_of_turn"` or a
                text, as in `RegressionAwareConfig`.
            end_every_number: whether it must follow every number of the grid.

        Returns:
            `prompt_ids`, the ids of the prompt, ending where the number begins, and `token_ids`, for each value in the
            grid's order the ids of its number, with those of its end where that is a token or a text.

        Raises:
            ValueError: the prompt is empty or no text; a number merges into the prompt's last token, has a token that
                the tokenizer does not know, or has the same tokens as another; the tokenizer has no such end.
        """
        # Imported here, since these modules import this one.
        from raft_peft.grid.number_end import NumberEnd
        from raft_peft.grid.resolution import resolve

        if not isinstance(prompt, str):
            raise ValueError(
                f"The prompt is {prompt!r}, which is not a text. For a chat, pass the text of "
                "tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)."
            )
        end = NumberEnd.of(number_end, tokenizer, every_number=end_every_number)
        return resolve(self, tokenizer, prompt, separator=separator, number_end=end)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[tuple[float, str]]:
        return iter(zip(self.values, self.texts, strict=True))

    @property
    def is_plain(self) -> bool:
        """Whether every number is written as itself, so that a list of values says all."""
        return all(text == number_text(value) for value, text in self)


def _finite_number(value: Any) -> float:
    try:
        number = meant_number(value)
    # A RuntimeError is torch's, of a tensor that holds several numbers.
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"The grid value {value!r} is not a number. Example: `grid=[1, 2, 3, 4, 5]`.") from None
    if not math.isfinite(number):
        raise ValueError(f"The grid value {value!r} is not finite. An expectation needs finite values.")
    return number + 0.0


def _number_word(number: float, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"The grid maps {number_text(number)} to {text!r}, which must be a text that is not empty. "
            "Example: `grid={1: 'A', 2: 'B'}`."
        )
    return text
