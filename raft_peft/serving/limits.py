"""What a server takes at most."""

from __future__ import annotations

from dataclasses import dataclass, fields


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

    body_bytes: int = 4 * 2**20
    prompt_tokens: int = 8192
    prompts: int = 1024
    questions: int = 200
    numbers: int = 1000
    waiting_prompts: int = 4096
    seconds: float = 60.0
    batch_tokens: int = 4096
    wait_milliseconds: float = 5.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (value > 0 or (value == 0 and one.name == "wait_milliseconds")):
                raise ValueError(f"`{one.name}={value}` lets nothing through. Set it higher.")
