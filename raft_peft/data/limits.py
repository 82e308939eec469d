"""What a model can take: so many positions, and so many different tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, List

from raft_peft.data.preferences import REJECTED_IDS, REJECTED_NUMBERS
from raft_peft.data.prompts import EncodedPrompt, rows_error

# Encoded rows that are looked at together.
_SLICE = 4096


@dataclass
class ModelLimits:
    """The limits of a model, which a prompt beyond them meets as an error of an index, without a row.

    Rows are encoded before the trainer has opened its model. So they may be made without numbers, and learn them.

    Attributes:
        positions: the most tokens of a prompt with its number; None where there is no limit, or none is known.
        tokens: how many tokens it has embeddings for; None where that is not known.
    """

    positions: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, model: Any) -> ModelLimits:
        """The limits that the config and the embeddings of a Hugging Face model tell."""
        limits = cls()
        limits.learn(model)
        return limits

    def learn(self, model: Any) -> None:
        """Take the limits of a model."""
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        weight = getattr(model.get_input_embeddings(), "weight", None)
        # Where the weights are in shards, a process may hold none of them.
        rows = weight.shape[0] if weight is not None and weight.dim() == 2 and weight.shape[0] else None
        self.positions = _positions(config)
        self.tokens = getattr(config, "vocab_size", None) if rows is None else rows

    def check(self, prompts: Sequence[EncodedPrompt], first_row: int = 0) -> None:
        """Raise a ValueError that names the prompts that the model cannot take."""
        self.check_columns([one.input_ids for one in prompts], [one.grid_token_ids for one in prompts], first_row)

    def check_columns(
        self,
        input_ids: Sequence[Sequence[int]],
        grid_token_ids: Sequence[Sequence[Sequence[int]]],
        first_row: int = 0,
    ) -> None:
        """The same, of the columns of encoded rows."""
        errors = []
        for row, (ids, numbers) in enumerate(zip(input_ids, grid_token_ids, strict=True), first_row):
            # A row with a label has no rejected prompt.
            if not ids:
                continue
            reason = self._objection(len(ids) + max(map(len, numbers)) - 1, max(max(ids), *map(max, numbers)))
            if reason is not None:
                errors.append((row, reason))
        if errors:
            raise rows_error(errors)

    def check_nested(
        self,
        input_ids: Sequence[Sequence[Sequence[int]]],
        grid_token_ids: Sequence[Sequence[Sequence[Sequence[int]]]],
        first_row: int = 0,
    ) -> None:
        """The same, of columns with several prompts a row."""
        for number, (prompts, grids) in enumerate(zip(input_ids, grid_token_ids, strict=True), first_row):
            for ids, numbers in zip(prompts, grids, strict=True):
                self.check_columns([ids], [numbers], number)

    def check_dataset(self, dataset: Dataset) -> None:
        """The same, of an encoded dataset; a row may have several prompts."""
        if isinstance(dataset.features["input_ids"].feature, List):
            self._check_prompts_of_rows(dataset)
            return
        self._check_prompts(dataset, "input_ids", "grid_token_ids")
        if REJECTED_IDS in dataset.column_names:
            self._check_prompts(dataset, REJECTED_IDS, REJECTED_NUMBERS)

    def _check_prompts(self, dataset: Dataset, ids_column: str, numbers_column: str) -> None:
        columns = dataset.with_format("arrow")
        for start in range(0, len(dataset), _SLICE):
            part = columns[start : start + _SLICE]
            ids, numbers = part[ids_column], part[numbers_column]
            # No row has a preference.
            if pc.max(pc.list_value_length(ids)).as_py() == 0:
                continue
            lengths = (
                pc.max(pc.list_value_length(ids)).as_py()
                + pc.max(pc.list_value_length(pc.list_flatten(numbers))).as_py()
            )
            greatest = max(pc.max(pc.list_flatten(column, recursive=True)).as_py() for column in (ids, numbers))
            if self._objection(lengths - 1, greatest) is not None:
                self.check_columns(ids.to_pylist(), numbers.to_pylist(), start)

    def _check_prompts_of_rows(self, dataset: Dataset) -> None:
        """The same, where a row has several prompts."""
        for number, row in enumerate(dataset.select_columns(["input_ids", "grid_token_ids"])):
            self.check_nested([row["input_ids"]], [row["grid_token_ids"]], number)

    def _objection(self, length: int, greatest: int) -> str | None:
        """Why the model cannot take a row; None where it can.

        Args:
            length: the tokens of the prompt and of its longest number.
            greatest: of their ids.
        """
        if self.positions is not None and length > self.positions:
            return (
                f"the prompt with its number has {length} tokens, and the model has {self.positions} positions. Set "
                "`max_length` to less, or shorten the prompt."
            )
        if self.tokens is not None and greatest >= self.tokens:
            return (
                f"the token id {greatest} is beyond the model's {self.tokens} embeddings. Use the model's own "
                "tokenizer. If tokens were added to it, call model.resize_token_embeddings(len(tokenizer)), and "
                "train them."
            )
        return None


def _positions(config: Any) -> int | None:
    """The positions of a config, as far as its rotary embeddings are stretched."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Dynamic ones are stretched to any length.
    if rope.get("rope_type", rope.get("type")) == "dynamic":
        return None
    factor, original = rope.get("factor") or 1, rope.get("original_max_position_embeddings") or positions
    return max(positions, int(original * factor))
