"""Rows with several reasonings, as a row for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raft_peft.data.prompts import rows_error
from raft_peft.data.reasoning.reasonings import REASONING, reasonings_of


def spread_reasonings(
    rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]
) -> tuple[list[dict[str, Any]], list[int]]:
    """A row for each reasoning of each row, and the place of the row that it is of; one where a row has none.

    Args:
        rows: with a text, a list of texts or nothing as their `reasoning`.
        numbers: of the rows in their dataset, for messages.

    Raises:
        ValueError: reasonings that are no texts, or are empty. The message names the rows.
    """
    spread: list[dict[str, Any]] = []
    places: list[int] = []
    errors: list[tuple[int, str]] = []
    for place, row in enumerate(rows):
        try:
            reasonings = reasonings_of(row)
        except ValueError as error:
            errors.append((numbers[place], str(error)))
            continue
        alone = not reasonings
        spread += [{**row, REASONING: one} for one in ([None] if alone else reasonings)]
        places += [place] * (1 if alone else len(reasonings))
    if errors:
        raise rows_error(errors)
    return spread, places
