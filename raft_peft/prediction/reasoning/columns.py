"""What a prediction with reasons adds to its row in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raft_peft.prediction.reasoning.reasoned import ReasonedPredictions, ReasonedReading

# By the names that they have in `ReasonedPredictions`.
REASONINGS, NUMBERS = "reasonings", "numbers"
REASON_COLUMNS = (REASONINGS, NUMBERS, "between", "within", "unfinished")


def reason_columns(chunk: ReasonedReading, shown: Callable[[Any], float | None]) -> list[dict[str, Any]]:
    """The columns of each row of a chunk, see [`ReasonedPredictions`].

    Args:
        chunk: what was read behind each reasoning.
        shown: a number as it is written.
    """
    found = ReasonedPredictions.of([chunk])
    return [
        {
            REASONINGS: found.reasonings[row],
            NUMBERS: [shown(number) for number in found.numbers[row]],
            "between": shown(found.between[row]),
            "within": shown(found.within[row]),
            "unfinished": int(found.unfinished[row]),
        }
        for row in range(len(found.reasonings))
    ]
