"""Lets a model write reasonings for prompts, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raft_peft.data.limits import ModelLimits
from raft_peft.data.prompts import PromptEncoder, rows_error
from raft_peft.forward.one_at_a_time import turn_of
from raft_peft.forward.writing import Written, write_texts

MAX_REASONING_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class ReasoningWriter:
    """Writes reasonings by a model.

    Attributes:
        model, encoder: of the predictor.
        autocast: the dtype in which products are computed; None for that of the weights.
        num_reasonings: reasonings of each prompt.
        temperature: by which they are drawn; 0 for the most likely one.
        max_reasoning_tokens: the most tokens of a reasoning.
        batch_size: the most reasonings that are written at a time.

    Raises:
        ValueError: a number that is out of range, or no words are known by which a reasoning ends.
    """

    model: Any
    encoder: PromptEncoder
    autocast: torch.dtype | None
    num_reasonings: int
    temperature: float = 1.0
    max_reasoning_tokens: int = MAX_REASONING_TOKENS
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("num_reasonings", "max_reasoning_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}={getattr(self, name)}` must be 1 or more.")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"`temperature={self.temperature}` must be 0 or more.")
        if self.temperature == 0 and self.num_reasonings > 1:
            raise ValueError(
                f"With `temperature=0` all {self.num_reasonings} reasonings of a prompt are the same. Set "
                "`num_reasonings=1`, or a temperature above 0."
            )
        if self.encoder.score_prefix is None:
            raise ValueError(
                "No words are known that lead from a reasoning to its score. Pass `score_prefix`, such as "
                "'\\n[RESULT] ', as the prompts ask for it."
            )

    def write(
        self, rows: Sequence[Mapping[str, Any]], first_row: int = 0, on_batch: Callable[[int], object] = lambda _: None
    ) -> list[list[Written]]:
        """The reasonings of each row, in order.

        Args:
            rows: with prompts, as a predictor takes them.
            first_row: the number of the first of them, for messages.
            on_batch: called after each batch, with the number of its rows.

        Raises:
            ValueError: rows without a prompt, or too long for the model. The message names them.
        """
        prompts = self.encoder.prompts_alone(rows, first_row, self.max_reasoning_tokens)
        self._check_room(prompts, first_row)
        prefix: Any = self.encoder.score_prefix
        at_once = max(1, self.batch_size // self.num_reasonings)
        # Prompts of like length are written behind together, so that little is padded.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        written: list[list[Written]] = [[] for _ in prompts]
        device = self.model.get_input_embeddings().weight.device.type
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            with (
                turn_of(self.model),
                torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None),
            ):
                texts = write_texts(
                    self.model,
                    self.encoder.tokenizer,
                    [prompts[index] for index in some],
                    count=self.num_reasonings,
                    temperature=self.temperature,
                    max_new_tokens=self.max_reasoning_tokens,
                    stop=prefix.words.strip(),
                )
            for index, found in zip(some, texts, strict=True):
                written[index] = found
            on_batch(len(some))
        return written

    def _check_room(self, prompts: Sequence[Sequence[int]], first_row: int) -> None:
        positions = ModelLimits.of(self.model).positions
        if positions is None:
            return
        errors = [
            (
                row,
                f"the prompt has {len(prompt)} tokens, and with `max_reasoning_tokens={self.max_reasoning_tokens}` "
                f"they are more than the model's {positions} positions. Set `max_reasoning_tokens` or `max_length` to "
                "less.",
            )
            for row, prompt in enumerate(prompts, first_row)
            if len(prompt) + self.max_reasoning_tokens >= positions
        ]
        if errors:
            raise rows_error(errors)
