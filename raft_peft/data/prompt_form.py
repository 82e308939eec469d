"""How the prompts of a model are written: its template, and what the prompts of its training had in common."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft_peft.data.prompt_shape import fits_shape
from raft_peft.data.prompt_template import PROMPT, PromptTemplate
from raft_peft.data.rows import as_rows
from raft_peft.messages import warn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptForm:
    """The form that a model knows its prompts in.

    Attributes:
        template: writes the prompts of rows that have its columns; None where prompts come as they are.
        shape: what the prompts of training had in common, as [`prompt_shape`] gives it; None where it is not known.
    """

    template: PromptTemplate | None = None
    shape: Any = None

    def rows(self, prompts: Iterable[Any], first_row: int = 0) -> Iterator[Mapping[str, Any]]:
        """Prompts as rows, see [`as_rows`], with their prompts written by the template where they have its columns.

        Args:
            prompts: as `as_rows` takes them.
            first_row: the number of the first of them, for messages.
        """
        for number, row in enumerate(as_rows(prompts), first_row):
            yield self.written(row, number)

    def written(self, row: Mapping[str, Any], number: int | None = None) -> Mapping[str, Any]:
        """A row with its prompt, by the template where it has its columns.

        Args:
            row: its columns.
            number: its own, for messages.

        Raises:
            ValueError: it has the columns and no prompt, and one of them is empty.
        """
        if self.template is None:
            return row
        lacks_prompt = not _holds_prompt(row) and self._has_columns(row)
        return self.template.write(row, number) if lacks_prompt or self.template.applies_to(row) else row

    def has_prompt(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has a column of prompts, or the columns that the template writes them from."""
        return _holds_prompt(row) or self._has_columns(row)

    def _has_columns(self, row: Mapping[str, Any]) -> bool:
        return self.template is not None and set(self.template.columns) <= set(row)

    def what_is_missing(self) -> str:
        """What a row lacks, for messages."""
        return "no `prompt`" if self.template is None else f"not those of the prompt template {self.template!r}"

    def warn_of_others(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Warn where most prompts do not have the words that all prompts of training had in common."""
        prompts = [row[PROMPT] for row in rows if row.get(PROMPT) is not None]
        if self.shape is None or not prompts:
            return
        other = [prompt for prompt in prompts if not fits_shape(prompt, self.shape)]
        if 2 * len(other) > len(prompts):
            warn(
                logger,
                f"{len(other)} of the first {len(prompts)} prompts do not look like those of training, so predictions "
                f"may be far off. In training they were {self.shape!r:.300}; here one is {other[0]!r:.300}. Write "
                "them alike, with `prompt_template` or in the rows.",
            )


def _holds_prompt(row: Mapping[str, Any]) -> bool:
    return bool({PROMPT, "input_ids"} & set(row))


def warn_of_another_template(asked: Any, saved: Any) -> None:
    """Warn where prompts are to be written by another template than in training.

    Args:
        asked: what is asked for; None for that of training.
        saved: that of training; None where prompts came as they were.
    """
    template = PromptTemplate.of(asked)
    if template is not None and saved is not None and template != PromptTemplate.of(saved):
        logger.warning(
            f"The model was trained with the prompt template {saved!r}, and not with {template!r}: predictions "
            "may be far off. Leave out `prompt_template` to take that of training."
        )
