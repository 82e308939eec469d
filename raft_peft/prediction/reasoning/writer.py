"""Lets a model write reasonings for prompts, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch

from raft_peft.data.limits import ModelLimits
from raft_peft.data.prompts import PromptEncoder, rows_error
from raft_peft.forward.memory import PartsThatFit
from raft_peft.forward.model import device_of
from raft_peft.forward.one_at_a_time import turn_of
from raft_peft.forward.writing import Written, write_texts

MAX_REASONING_TOKENS = 512


class ReasoningOptions(TypedDict, total=False):
    """How reasonings are written before the numbers, as `RegressionPredictor.predict` takes it."""

    num_reasonings: int
    temperature: float
    max_reasoning_tokens: int
    seed: int | None


# What predictions with reasons depend on. The random numbers change each of them, and not how far they err.
READING_OPTIONS = ("num_reasonings", "temperature", "max_reasoning_tokens")


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
        seed: of the random numbers, which then depend on this and on the number of the first row alone; None for
            torch's own.

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
    seed: int | None = None
    _parts: PartsThatFit = field(default_factory=PartsThatFit, repr=False, compare=False)

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
        at_once = max(1, self.batch_size // self.num_reasonings)
        # Prompts of like length are written behind together, so that little is padded.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        written: list[list[Written]] = [[] for _ in prompts]
        with self._writing(first_row):
            for start in range(0, len(order), at_once):
                some = order[start : start + at_once]
                for index, texts in zip(some, self._write([prompts[index] for index in some]), strict=True):
                    written[index] = texts
                on_batch(len(some))
        return written

    def _write(self, prompts: Sequence[Sequence[int]]) -> list[list[Written]]:
        """The reasonings of a batch, in parts where the memory is not enough for the whole."""
        prefix: Any = self.encoder.score_prefix

        def of_part(some: slice) -> list[list[Written]]:
            return write_texts(
                self.model,
                self.encoder.tokenizer,
                prompts[some],
                count=self.num_reasonings,
                temperature=self.temperature,
                max_new_tokens=self.max_reasoning_tokens,
                stop=prefix.end_of_reasoning,
            )

        tokens = self.num_reasonings * (max(map(len, prompts)) + self.max_reasoning_tokens)
        return [texts for part in self._parts.run(of_part, len(prompts), tokens) for texts in part]

    @contextmanager
    def _writing(self, first_row: int) -> Iterator[None]:
        device = device_of(self.model.get_input_embeddings())
        forked = [] if device.type == "cpu" else [device]
        with (
            turn_of(self.model),
            torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None),
            torch.random.fork_rng(forked, enabled=self.seed is not None, device_type=device.type),
        ):
            if self.seed is not None:
                torch.manual_seed(self.seed + first_row)
            yield

    def reading_options(self) -> dict[str, Any]:
        """What predictions depend on, by names."""
        return {name: getattr(self, name) for name in READING_OPTIONS}

    def _check_room(self, prompts: Sequence[Sequence[int]], first_row: int) -> None:
        positions = ModelLimits.of(self.model).positions
        if positions is None:
            return
        prefix: Any = self.encoder.score_prefix
        # Behind a reasoning stand the words of the prefix and the number, whose tokens are fewer than its letters.
        behind = len(self.encoder.tokenizer(prefix.text, add_special_tokens=False)["input_ids"])
        behind += max(map(len, self.encoder.grid.texts))
        most = positions - self.max_reasoning_tokens - behind
        errors = [
            (
                row,
                f"the prompt has {len(prompt)} tokens, and with `max_reasoning_tokens={self.max_reasoning_tokens}` "
                f"and {behind} for the score they are more than the model's {positions} positions. Set "
                "`max_reasoning_tokens` or `max_length` to less.",
            )
            for row, prompt in enumerate(prompts, first_row)
            if len(prompt) > most
        ]
        if errors:
            raise rows_error(errors)
