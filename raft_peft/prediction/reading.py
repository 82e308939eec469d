"""`PromptReader`: what a model says of prompts, as encoded and as read, before it is made a prediction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
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
from raft_peft.data.remarks import Remarks
from raft_peft.grid import NumberGrid, number_text
from raft_peft.heads import Head
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.readout import Reading, Readout
from raft_peft.methods.renormalization import resolve_renormalize
from raft_peft.prediction.batching import BatchRunner, chunks, collate_prompts
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.questions.answering import Questions
from raft_peft.prediction.questions.predictor import AnsweringPredictor


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
        self._encoder = PromptEncoder(tokenizer, numbers, separator=separator, max_length=max_length, number_end=end)
        ids = None if grid_token_ids is None else tuple(map(tuple, grid_token_ids))
        self._readout = Readout(model, tokenizer, numbers, self.settings, grid_token_ids=ids, head=head)
        self._readout.refuse_untrained()
        self._readout.head.eval()

    @property
    def has_grid(self) -> bool:
        """Whether it predicts numbers, and not answers alone."""
        return self._readout is not None

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
        show_progress: bool | None = None,
    ) -> Iterator[Reading]:
        """What `predict` and `predict_distribution` give, for so many prompts at a time, as they are read.

        Takes what `predict` takes.

        Args:
            chunk_size: the prompts that are sorted by beginning and length together, and read in order.
            first_row: the number of the first of them, for messages.

        Yields:
            A [`Reading`] of each chunk, on the CPU: `predictions` of shape (chunk,), and `distribution` over the whole
            vocabulary, None where the method gives a number alone.
        """
        total = len(prompts) if isinstance(prompts, Sized) else None
        show_progress = (total is None or total > batch_size) if show_progress is None else show_progress
        runner = self.runner(batch_size, batch_tokens)
        remarks, limits = self.remarks(), ModelLimits.of(self.model)
        with tqdm(total=total, unit="prompt", disable=not show_progress) as progress:
            for rows in chunks(self.prompt_form.rows(prompts, first_row), chunk_size):
                if first_row == 0:
                    self.prompt_form.warn_of_others(rows)
                encoded = self._encoder.encode(rows, first_row)
                limits.check(encoded, first_row)
                remarks.on_encoded(encoded)
                first_row += len(rows)
                yield runner.run(encoded, progress.update)

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
