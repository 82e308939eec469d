"""Preferences: rows of `chosen` and `rejected`, as TRL has them, each as two prompts that a number follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Features, List, Value

from raft_peft.data.chats import CHAT_COLUMNS, as_text
from raft_peft.data.prompt_template import PROMPT, PromptTemplate
from raft_peft.data.prompts import PromptEncoder, rows_error
from raft_peft.data.remarks import REMARKABLE

CHOSEN, REJECTED, MARGIN = "chosen", "rejected", "margin"
# The columns of encoded rows beside those of a row with a label; the chosen prompt is in the place of its prompt.
REJECTED_IDS, REJECTED_NUMBERS = "rejected_input_ids", "rejected_grid_token_ids"
PREFERENCE_COLUMNS = [REJECTED_IDS, REJECTED_NUMBERS, MARGIN]


def may_prefer(names: Collection[str], label_column: str) -> bool:
    """Whether rows of these columns can hold preferences.

    Beside a label, a column of one of the names alone is of no matter.
    """
    return {CHOSEN, REJECTED} <= set(names) or (label_column not in names and not {CHOSEN, REJECTED}.isdisjoint(names))


@dataclass(frozen=True)
class PreferenceWriter:
    """Writes the two prompts of a preference, and the one of any other row.

    Attributes:
        template: writes the prompts, as of rows with a label. `chosen` and `rejected` take the place of the one column
            that it names and the row does not have; where the row has them all, they follow `prompt`. None: a prompt
            is `prompt` and behind it `chosen` or `rejected`, or these alone.
    """

    template: PromptTemplate | None = None

    def __call__(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of the prompts, the chosen one first; of a row without a preference, one.

        Raises:
            ValueError: `chosen` or `rejected` is missing, both are the same, or they do not fit the template.
        """
        missing = [name for name in (CHOSEN, REJECTED) if _is_empty(row.get(name))]
        others = {name: value for name, value in row.items() if name not in (CHOSEN, REJECTED, MARGIN)}
        if len(missing) == 2:
            return [others if self.template is None else self.template.write(others)]
        if missing:
            other = CHOSEN if missing == [REJECTED] else REJECTED
            raise ValueError(
                f"it has {other!r} and no {missing[0]!r}. A preference needs both. Fill the column, or drop the row."
            )
        if row[CHOSEN] == row[REJECTED]:
            raise ValueError(
                f"`chosen` and `rejected` are the same, {as_text(row[CHOSEN])!r:.80}. Neither can be preferred: drop "
                "the row."
            )
        return [self._written(others, row[name], name) for name in (CHOSEN, REJECTED)]

    def _written(self, row: dict[str, Any], side: Any, name: str) -> dict[str, Any]:
        if self.template is None:
            return {**row, PROMPT: _behind(row.get(PROMPT), side, name)}
        columns = self.template.columns
        # An empty text may be meant, and in CSV it is all that a cell can hold.
        empty = [column for column in columns if _is_empty(row.get(column))]
        open_columns = [column for column in empty if row.get(column) is None] or empty
        if len(open_columns) > 1 or (not open_columns and PROMPT not in columns):
            found = f"lacks {', '.join(map(repr, open_columns))}" if open_columns else "has them all"
            raise ValueError(
                f"`chosen` and `rejected` fill the one column that the prompt template {self.template!r} names and "
                f"the row does not have, and the row {found}. Let it name one more column than the row has, such as "
                "'Question: {prompt} Answer: {completion} Score:'."
            )
        if not open_columns:
            return self.template.write({**row, PROMPT: as_text(_behind(row[PROMPT], side, name))})
        given = {} if _is_empty(row.get(PROMPT)) else {PROMPT: as_text(row[PROMPT])}
        return self.template.write({**row, **given, open_columns[0]: as_text(side)})


def _behind(prompt: Any, side: Any, name: str) -> Any:
    """A prompt and what follows it, both texts or both messages of a chat."""
    if _is_empty(prompt):
        return side
    if isinstance(prompt, str) != isinstance(side, str):
        raise ValueError(
            f"`prompt` is {_kind(prompt)}, and {name!r} is {_kind(side)}. Write both as texts or both as messages, or "
            "set `prompt_template`, such as 'Question: {prompt} Answer: {completion} Score:'."
        )
    return prompt + side if isinstance(prompt, str) else [*prompt, *side]


def _kind(value: Any) -> str:
    return "a text" if isinstance(value, str) else "a list of messages"


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: an empty text in CSV, not a number in pandas."""
    return value is None or value == "" or value == [] or (isinstance(value, float) and math.isnan(value))


def margin_of(row: Mapping[str, Any]) -> float:
    """The margin of a preference, in the unit of the labels; 0 where there is none.

    Raises:
        ValueError: it is not a finite number.
    """
    raw: Any = row.get(MARGIN)
    if _is_empty(raw):
        return 0.0
    try:
        margin = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise ValueError(f"the margin is {raw!r:.80}. It is a number in the unit of the labels; or leave it empty.")
    return margin


@dataclass(frozen=True)
class PreferenceEncoder:
    """Encodes a batch of rows of which some are preferences, as `Dataset.map` calls it.

    Attributes:
        encode: encodes rows of `prompt` and label, see [`BatchEncoder`]. Of a batch without a label column it gets
            rows without.
        writer: writes the prompts.
        label_column: the column of the label.
    """

    encode: Any
    writer: PreferenceWriter
    label_column: str

    def __call__(self, batch: Mapping[str, list], indices: Sequence[int]) -> dict[str, list]:
        """The columns of the encoded batch, in which a row with a label has no rejected prompt, and others no label.

        Raises:
            ValueError: rows that cannot be encoded. The message names them.
        """
        encoder: PromptEncoder = self.encode.encoder
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        prompts = _of_each(self._prompts, rows, indices[0])
        margins = _of_each(margin_of, rows, indices[0])
        # A preference has no label, and takes a number of the grid to the checks of the other rows.
        stand_in = {self.label_column: encoder.grid.values[0]} if self.encode.labelled else {}
        first = [of_row[0] | (stand_in if len(of_row) > 1 else {}) for of_row in prompts]
        names = list(dict.fromkeys(name for row in first for name in row))
        encoded = self.encode({name: [row.get(name) for row in first] for name in names}, indices)
        rejected = encoder.encode([of_row[-1] for of_row in prompts], indices[0])
        is_pair = [len(of_row) > 1 for of_row in prompts]
        self._check_unlike(encoded["input_ids"], rejected, is_pair, indices[0])
        labels = encoded.get("label", [None] * len(rows))
        encoded["label"] = [None if pair else label for pair, label in zip(is_pair, labels, strict=True)]
        for name in {"rating_values", "rating_shares"} & set(encoded):
            encoded[name] = [None if pair else one for pair, one in zip(is_pair, encoded[name], strict=True)]
        for name in REMARKABLE:
            encoded[name] = [one or getattr(two, name) for one, two in zip(encoded[name], rejected, strict=True)]
        pairs = list(zip(is_pair, rejected, strict=True))
        encoded[REJECTED_IDS] = [one.input_ids if pair else [] for pair, one in pairs]
        encoded[REJECTED_NUMBERS] = [one.grid_token_ids if pair else [] for pair, one in pairs]
        encoded[MARGIN] = margins
        return encoded

    def _prompts(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        prompts = self.writer(row)
        label = row.get(self.label_column)
        if len(prompts) > 1 and not _is_empty(label):
            raise ValueError(
                f"it is a preference, with `chosen` and `rejected`, and has the label {label!r:.80}. Write the label "
                "in a row of its own, with its prompt."
            )
        if len(prompts) == 1 and _is_empty(label) and not self.encode.labelled:
            raise ValueError("it has neither `chosen` and `rejected` nor a label. Fill the columns, or drop the row.")
        if len(prompts) == 1:
            return prompts
        # A `completion` that the template has taken would be read as a label.
        return [{name: one[name] for name in (PROMPT, *CHAT_COLUMNS) if name in one} for one in prompts]

    def _check_unlike(
        self, chosen: Sequence[list[int]], rejected: Sequence[Any], is_pair: Sequence[bool], first: int
    ) -> None:
        same = [
            (
                row,
                "the prompts of `chosen` and `rejected` have the same tokens, so neither can be preferred. They "
                "differ only in what `max_length` cuts off, or in what the tokenizer does not see. Raise "
                "`max_length`, or drop the row.",
            )
            for row, (ids, other, pair) in enumerate(zip(chosen, rejected, is_pair, strict=True), first)
            if pair and ids == other.input_ids
        ]
        if same:
            raise rows_error(same)

    @property
    def features(self) -> Features:
        """The types of the encoded columns."""
        return Features(
            {
                **self.encode.features,
                "label": Value("float64"),
                REJECTED_IDS: List(Value("int64")),
                REJECTED_NUMBERS: List(List(Value("int32"))),
                MARGIN: Value("float64"),
            }
        )


def _of_each(make: Callable[[Mapping[str, Any]], Any], rows: Sequence[Mapping[str, Any]], first: int) -> list[Any]:
    """What is made of each row.

    Raises:
        ValueError: of all rows of which nothing can be made. The message names them.
    """
    made, errors = [], []
    for number, row in enumerate(rows, first):
        try:
            made.append(make(row))
        except ValueError as error:
            errors.append((number, str(error)))
    if errors:
        raise rows_error(errors)
    return made
