"""`PromptReader`: what a model says of prompts, as encoded and as read, before it is made a prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from raft_peft.data.batches import RegressionCollator
from raft_peft.data.limits import ModelLimits
from raft_peft.data.prompt_form import PromptForm
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.prompts import EncodedPrompt, PromptEncoder
from raft_peft.data.reasoning.reasonings import REASONING, ScorePrefix, reasonings_of
from raft_peft.data.reasoning.rows import spread_reasonings
from raft_peft.data.remarks import Remarks
from raft_peft.forward.writing import Written
from raft_peft.grid import NumberGrid, number_text
from raft_peft.heads import Head
from raft_peft.messages import warn
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.readout import Reading, Readout
from raft_peft.methods.reasonings import mean_reading
from raft_peft.methods.renormalization import resolve_renormalize
from raft_peft.prediction.batching import BatchRunner, chunks, collate_prompts
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.questions.answering import Questions
from raft_peft.prediction.questions.predictor import AnsweringPredictor
from raft_peft.prediction.reasoning.reasoned import ReasonedReading
from raft_peft.prediction.reasoning.writer import MAX_REASONING_TOKENS, ReasoningWriter

logger = logging.getLogger(__name__)


class PromptReader(AnsweringPredictor):
    """Reads numbers off a language model. Takes what [`RegressionPredictor`] takes, and raises what it raises."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid | None = None,
        *,
        separator: str | None = None,
        max_length: int | None = None,
        head: Head | None = None,
        grid_token_ids: Sequence[Sequence[int]] | None = None,
        autocast: str | torch.dtype | None = None,
        prompt_template: str | Sequence[Mapping[str, str]] | PromptTemplate | None = None,
        prompt_shape: Any = None,
        questions: Questions | None = None,
        question_template: Any = None,
        score_prefix: str | None = None,
        **settings: Any,
    ):
        of_method = MethodSettings(**settings)
        of_method.check_method()
        numbers = None if grid is None else NumberGrid(grid)
        if numbers is not None:
            resolve_renormalize(of_method, numbers, head)
            check_grid(of_method, numbers, head)
        super().__init__(model, tokenizer, of_method, max_length, autocast, questions, question_template)
        self.prompt_form = PromptForm(PromptTemplate.of(prompt_template), prompt_shape)
        self.calibration: Calibration | None = None
        self._collator = RegressionCollator(pad_token_id=self._pad_token_id)
        self._readout: Readout | None = None
        if numbers is None:
            return
        end = self.settings.end_of_numbers(tokenizer)
        self._encoder = PromptEncoder(
            tokenizer,
            numbers,
            separator=separator,
            max_length=max_length,
            number_end=end,
            score_prefix=None if score_prefix is None else ScorePrefix(score_prefix),
        )
        ids = None if grid_token_ids is None else tuple(map(tuple, grid_token_ids))
        self._readout = Readout(model, tokenizer, numbers, self.settings, grid_token_ids=ids, head=head)
        self._readout.refuse_untrained()
        self._readout.head.eval()

    @property
    def has_grid(self) -> bool:
        """Whether it predicts numbers, and not answers alone."""
        return self._readout is not None

    @property
    def reads_reasonings(self) -> bool:
        """Whether it knows the words that lead from a reasoning to its number."""
        return self.has_grid and self._encoder.score_prefix is not None

    @property
    def grid(self) -> NumberGrid:
        """The numbers that it may answer a prompt with.

        Raises:
            ValueError: it was made without any.
        """
        return self.readout.grid

    @property
    def readout(self) -> Readout:
        """The method at work on the model. Raises as `grid` does."""
        if self._readout is None:
            raise ValueError(
                "This predictor has no grid. Pass the numbers to predict, such as `grid=[1, 2, 3, 4, 5]`. Without "
                "one it only answers typed questions, with `decide`."
            )
        return self._readout

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the numbers that there are probabilities for, in the order of a distribution's values."""
        values = self.readout.values.tolist()
        if values == np.asarray(self.grid.values, np.float32).tolist():
            return self.grid.texts
        return tuple(number_text(value) for value in values)

    @property
    def reads_text(self) -> bool:
        """Whether numbers are parsed from decoded texts."""
        return self.readout.reads_text

    @property
    def sums_to_one(self) -> bool:
        """Whether a distribution holds all probability by construction, so that its mass says nothing."""
        return self.readout.head.sums_to_one

    def remarks(self) -> Remarks:
        """What says, once of each kind, what is odd about prompts and labels that are used."""
        limited = METHODS[self.settings.method].limited_by_grid
        return Remarks("", self._encoder, limited_by_grid=limited, renormalize=self.readout.renormalize)

    def read(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        chunk_size: int = 8192,
        first_row: int = 0,
        writer: ReasoningWriter | None = None,
        show_progress: bool | None = None,
    ) -> Iterator[Reading]:
        """What `predict` and `predict_distribution` give, for so many prompts at a time, as they are read.

        Takes what `predict` takes.

        Args:
            chunk_size: the prompts that are sorted by beginning and length together, and read in order.
            first_row: the number of the first of them, for messages.
            writer: writes the reasonings before the numbers; None for those that the rows have, if any.

        Yields:
            A [`Reading`] of each chunk, on the CPU: `predictions` of shape (chunk,), and `distribution` over the whole
            vocabulary, None where the method gives a number alone.
        """
        options: Any = {
            "chunk_size": chunk_size,
            "first_row": first_row,
            "writer": writer,
            "show_progress": show_progress,
        }
        for one in self.read_reasonings(prompts, batch_size, batch_tokens=batch_tokens, **options):
            yield one.of_rows

    def read_reasonings(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        chunk_size: int = 8192,
        first_row: int = 0,
        writer: ReasoningWriter | None = None,
        show_progress: bool | None = None,
    ) -> Iterator[ReasonedReading]:
        """What is read behind each reasoning of a row, for so many rows at a time. Takes what `read` takes."""
        total = len(prompts) if isinstance(prompts, Sized) else None
        show_progress = (total is None or total > batch_size) if show_progress is None else show_progress
        runner = self.runner(batch_size, batch_tokens)
        remarks, limits = self.remarks(), ModelLimits.of(self.model)
        count = unfinished = 0
        with tqdm(total=total, unit="prompt", disable=not show_progress) as progress:
            for rows in chunks(self.prompt_form.rows(prompts, first_row), chunk_size):
                if first_row == 0:
                    self.prompt_form.warn_of_others(rows)
                    self._warn_of_no_reasonings(rows, writer)
                # Writing takes far longer than reading, so that the bar shows what is written.
                written = None if writer is None else writer.write(rows, first_row, progress.update)
                encoded, counts = self._encode_reasonings(rows, first_row, written)
                limits.check(encoded, first_row)
                remarks.on_encoded(encoded)
                on_read = _unseen if written is not None else _of_rows(progress.update, len(rows), len(encoded))
                reading = runner.run(encoded, on_read)
                first_row += len(rows)
                if written is None:
                    texts = [reasonings_of(row) for row in rows]
                    ended = [[True] * len(one) for one in texts]
                else:
                    texts = [[one.text.strip() for one in row] for row in written]
                    ended = [[one.ended for one in row] for row in written]
                    count += sum(counts)
                    unfinished += sum(not done for row in ended for done in row)
                yield ReasonedReading(reading, mean_reading(reading, counts, self.readout), texts, ended, counts)
        if writer is not None and unfinished:
            warn(
                logger,
                f"{unfinished} of the {count} reasonings did not end within "
                f"`max_reasoning_tokens={writer.max_reasoning_tokens}`. Each was closed with the words that lead to "
                "the score, and its number read behind what there was.",
            )

    def _warn_of_no_reasonings(self, rows: Sequence[Mapping[str, Any]], writer: ReasoningWriter | None) -> None:
        """Warn where a model of reasons is asked for numbers without any."""
        if writer is None and self.reads_reasonings and all(row.get(REASONING) is None for row in rows):
            warn(
                logger,
                "The model knows the words between a reasoning and its number, and there are no reasonings: numbers "
                "are read behind the prompts and these words. Set `num_reasonings`, such as 5, to let it write some.",
            )

    def _encode_reasonings(
        self, rows: Sequence[Mapping[str, Any]], first_row: int, written: Sequence[Sequence[Written]] | None
    ) -> tuple[list[EncodedPrompt], list[int]]:
        """The prompts of rows with each of their reasonings, and how many each row has."""
        numbers = range(first_row, first_row + len(rows))
        if written is None:
            spread, places = spread_reasonings(rows, numbers)
        else:
            spread = [{**row, REASONING: one.text} for row, own in zip(rows, written, strict=True) for one in own]
            places = [place for place, own in enumerate(written) for _ in own]
        encoded = self._encoder.encode(
            spread, numbers=[numbers[place] for place in places], is_written_by_model=written is not None
        )
        return encoded, np.bincount(places, minlength=len(rows)).tolist()

    def writer(
        self,
        num_reasonings: int = 0,
        *,
        temperature: float = 1.0,
        max_reasoning_tokens: int = MAX_REASONING_TOKENS,
        seed: int | None = None,
        batch_size: int = 64,
    ) -> ReasoningWriter | None:
        """What writes reasonings before the numbers; None for 0 of them. Takes what `predict` takes.

        Raises:
            ValueError: a number that is out of range, or an argument that has no effect without reasonings.
        """
        if num_reasonings == 0:
            if (temperature, max_reasoning_tokens, seed) != (1.0, MAX_REASONING_TOKENS, None):
                raise ValueError(
                    "`temperature`, `max_reasoning_tokens` and `seed` are for reasonings that the model writes, and "
                    "it writes none. Set `num_reasonings`, or leave them out."
                )
            return None
        return ReasoningWriter(
            model=self.model,
            encoder=self._encoder,
            autocast=self._autocast,
            num_reasonings=num_reasonings,
            temperature=temperature,
            max_reasoning_tokens=max_reasoning_tokens,
            seed=seed,
            batch_size=batch_size,
        )

    def runner(self, batch_size: int = 64, batch_tokens: int = 4096) -> BatchRunner:
        """Computes the readings of prompts that are encoded already, see `encode`."""
        return BatchRunner(
            model=self.model,
            readout=self.readout,
            collate=partial(collate_prompts, self._collator),
            parts=self._parts,
            autocast=self._autocast,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
        )

    def encode(self, prompts: Iterable[Any]) -> list[EncodedPrompt]:
        """The tokens of prompts, for `runner`. Takes the prompts of `predict`, and raises as it does."""
        encoded = self._encoder.encode(list(self.prompt_form.rows(prompts, 0)))
        ModelLimits.of(self.model).check(encoded, 0)
        return encoded


def _of_rows(update: Callable[[int], object], rows: int, readings: int) -> Callable[[int], None]:
    """Counts rows, where readings are counted, of which several may be of one row."""
    done = 0

    def on_read(count: int) -> None:
        nonlocal done
        before, done = done * rows // readings, done + count
        update(done * rows // readings - before)

    return on_read


def _unseen(_: int) -> None:
    """Count nothing."""
