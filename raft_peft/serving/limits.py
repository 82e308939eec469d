"""What a server takes at most."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _limit(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused is told in the answer, with the limit and its status.

    Attributes:
        body_bytes: of a request's body; 413 above.
        prompt_tokens: of one prompt, and of a state with one question; 400 above.
        prompts: in one request to `/v1/predict`; 400 above.
        questions: in one request; 400 above.
        numbers: in the grid of a question of the type `number`; 400 above.
        waiting_prompts: prompts and states of all requests that wait for the model; 429 above.
        seconds: from a request's arrival to its answer; 504 above.
        batch_tokens: tokens that are computed together.
        wait_milliseconds: how long the first request of a batch waits for others.

    Raises:
        ValueError: a limit that lets nothing through.
    """

    body_bytes: int = _limit(4 * 2**20, "Bytes of a body")
    prompt_tokens: int = _limit(8192, "Tokens of a prompt, or of a state with a question")
    prompts: int = _limit(1024, "Prompts in a request")
    questions: int = _limit(200, "Questions in a request")
    numbers: int = _limit(1000, "Numbers in the grid of a question")
    waiting_prompts: int = _limit(4096, "Prompts and states that may wait")
    seconds: float = _limit(60.0, "From a request's arrival to its answer")
    batch_tokens: int = _limit(4096, "Tokens that are computed together")
    wait_milliseconds: float = _limit(5.0, "How long the first request of a batch waits for others")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (value > 0 or (value == 0 and one.name == "wait_milliseconds")):
                raise ValueError(f"`{one.name}={value}` lets nothing through. Set it higher.")
