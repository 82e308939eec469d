"""`RegressionPredictor`: from a saved folder, or a base model and a grid, to numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from tqdm.auto import tqdm

from raft_peft.data.batches import RegressionCollator
from raft_peft.data.limits import ModelLimits
from raft_peft.data.prompt_form import PromptForm
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.prompts import PromptEncoder
from raft_peft.data.remarks import Remarks
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid, number_text
from raft_peft.heads import Head
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.readout import Reading, Readout
from raft_peft.methods.renormalization import resolve_renormalize
from raft_peft.methods.saved_folder import hub_options
from raft_peft.prediction.applied_calibration import AppliedCalibration
from raft_peft.prediction.batching import BatchRunner, chunks, collate_prompts
from raft_peft.prediction.calibrated_weights import calibrated_settings, usable_calibration
from raft_peft.prediction.calibrating import calibrate
from raft_peft.prediction.calibration import Calibration
from raft_peft.prediction.opening import open_saved, saved_calibrations
from raft_peft.prediction.predictions import (
    Predictions,
    PredictionsWithDistribution,
    PredictionsWithIntervals,
    PredictionsWithIntervalsAndDistribution,
    PredictOptions,
    as_asked,
    predictions_and_distribution,
    predictions_of,
)
from raft_peft.prediction.questions.predictor import AnsweringPredictor, Questions
from raft_peft.prediction.temperature import refuse_one_number


class RegressionPredictor(AnsweringPredictor):
    """Predicts numbers with a language model, as it was trained or zero-shot.

    ```python
    predictor = RegressionPredictor.from_pretrained("my-raft-adapter")
    stars = predictor.predict(["Review: It broke on day two. Stars:", "Review: Best purchase ever. Stars:"])
    ```

    Args:
        model: a causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        grid: the numbers that it may answer with, as for [`RegressionAwareTrainer`]; None for typed questions alone.
        separator: text between prompt and number; None for the default, see [`RegressionAwareConfig`].
        max_length: the most tokens of a prompt; a longer one loses its beginning. None for no limit.
        head: a head of yours, for a model that was trained with it; or of a trainer, as `trainer.readout.head`.
        grid_token_ids: the tokens of each grid value in training, for a head that starts from them.
        prompt_template: writes the prompts of rows that have its columns, see [`RegressionAwareConfig`].
        prompt_shape: what the prompts of training had in common; a warning says where those here do not have it.
        autocast, questions, question_template: see [`AnsweringPredictor`].
        settings: of [`MethodSettings`]: `method`, `decision`, `renormalize` and so on.

    Raises:
        ValueError: settings that do not exist or do not go together, a model that cannot be read like this, or a
            method whose head nobody trained.
    """

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

    @classmethod
    def from_pretrained(
        cls,
        folder_or_model: str | Path,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid | None = None,
        dtype: str | torch.dtype | None = None,
        quantization_config: Any = None,
        *,
        device_map: Any = None,
        separator: str | None = None,
        max_length: int | None = None,
        method: str | None = None,
        decision: str | None = None,
        renormalize: bool | None = None,
        attention: str | None = None,
        num_samples: int | None = None,
        number_end: str | None = None,
        end_every_number: bool | None = None,
        constrained: bool | None = None,
        head: Head | None = None,
        autocast: str | torch.dtype | None = None,
        prompt_template: str | Sequence[Mapping[str, str]] | PromptTemplate | None = None,
        **model_kwargs: Any,
    ) -> RegressionPredictor:
        """Load what `trainer.save_model` wrote, or a base model for zero-shot prediction.

        Args:
            folder_or_model: a folder or Hub repository, with a `raft_config.json` or with `grid`.
            grid: the numbers, for a model without `raft_config.json`, or instead of the saved ones. Without any,
                typed questions can be answered.
            dtype: of the weights. By default as in training; for zero-shot, as the model was saved.
            quantization_config: such as a `BitsAndBytesConfig`. By default as in training; False for none.
            device_map: by default all on the GPU where there is one, else on the CPU.
            separator, max_length, decision, renormalize, attention, number_end, end_every_number, constrained:
                instead of the saved settings.
            method, num_samples: see [`MethodSettings`]; by default as trained, or raft. One without parameters of its
                own reads any model: `rail`, `zero_shot`.
            head: the head of yours that the model was trained with, made as it was then; its parameters are loaded.
            autocast, prompt_template: see [`RegressionPredictor`]; by default as in training.
            model_kwargs: `question_template`; the rest of [`MethodSettings`], which a trained head has to have been
                trained with; all else goes to the model's `from_pretrained`, as `attn_implementation` or `token`.

        Raises:
            ValueError: a `raft_config.json` that does not fit the tokenizer; a head that is missing or does not fit.
        """
        asked = {
            "separator": separator,
            "max_length": max_length,
            "method": method,
            "decision": decision,
            "renormalize": renormalize,
            "attention": attention,
            "num_samples": num_samples,
            "number_end": number_end,
            "end_every_number": end_every_number,
            "constrained": constrained,
            "autocast": autocast,
            "prompt_template": prompt_template,
        }
        more = ("question_template", *(one.name for one in fields(MethodSettings)))
        asked |= {setting: model_kwargs.pop(setting) for setting in more if setting in model_kwargs}
        name = str(folder_or_model)
        opened = open_saved(
            name,
            grid,
            {setting: value for setting, value in asked.items() if value is not None},
            head,
            dtype=dtype,
            quantization_config=quantization_config,
            device_map=device_map,
            **model_kwargs,
        )
        predictor = cls(**opened)
        predictor.calibration, predictor.question_calibration = saved_calibrations(name, hub_options(model_kwargs))
        return predictor

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

    @overload
    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        interval: None = None,
        return_distribution: Literal[False] = False,
        **options: Unpack[PredictOptions],
    ) -> np.ndarray: ...

    @overload
    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        interval: float,
        return_distribution: Literal[False] = False,
        **options: Unpack[PredictOptions],
    ) -> PredictionsWithIntervals: ...

    @overload
    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        interval: None = None,
        return_distribution: Literal[True],
        **options: Unpack[PredictOptions],
    ) -> PredictionsWithDistribution: ...

    @overload
    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        interval: float,
        return_distribution: Literal[True],
        **options: Unpack[PredictOptions],
    ) -> PredictionsWithIntervalsAndDistribution: ...

    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        interval: float | None = None,
        groups: str | Iterable[Any] | None = None,
        calibrated: bool = False,
        return_distribution: bool = False,
        show_progress: bool | None = None,
    ) -> Predictions:
        """Predict one number for each prompt.

        Prompts of like length are run together, and what several of them begin with once for all of these.

        Args:
            prompts: texts, chats (lists of messages), or rows (dicts with `prompt`, or the columns of the prompt
                template, and for a chat optionally `tools` and `chat_template_kwargs`). Any iterable; it is read as it
                is needed, so its length does not matter. Of a data frame or a dataset, its rows.
            batch_size: the most prompts in a forward pass.
            batch_tokens: the most tokens in a forward pass, with padding and without what the prompts begin with in
                common; a longer prompt is run alone.
            interval: the share of labels that intervals around the predictions are to cover, such as 0.9, after
                `calibrate`; see [`Calibration`].
            groups: after `calibrate(..., groups=...)`, the group of each prompt, or the column of the rows that names
                it; by default the column of then.
            calibrated: map the predictions to labels, after `calibrate(..., label_map=...)`.
            return_distribution: whether to give the distributions too, as `predict_distribution` does, without a
                second pass.
            show_progress: whether to show a progress bar; by default where there is more than one batch.

        Returns:
            The numbers in the unit of the labels, float32, of shape (prompts,), in the order of the prompts. With
            `interval` or `return_distribution` a named tuple: these as `predictions`, then the ends of the intervals
            as `low` and `high`, then `distribution`, whichever were asked for.

        Raises:
            ValueError: intervals were asked for, and there is no calibration for them, or on too few rows; or
                distributions, and the method gives a number alone.
        """
        # What cannot be given is refused now, not after hours of prediction.
        applied = AppliedCalibration.of_predictor(self, interval=interval, mapped=calibrated, groups=groups)
        prompts = applied.prompts(prompts)
        chunks = self.read(prompts, batch_size, batch_tokens=batch_tokens, show_progress=show_progress)
        both = return_distribution or applied.needs_distribution
        predictions, distribution = self._with_distribution(chunks) if both else (predictions_of(chunks), None)
        predictions, ends = applied.of(predictions, distribution)
        return as_asked(predictions, ends, distribution if return_distribution else None)

    def _with_distribution(self, readings: Iterable[Reading]) -> PredictionsWithDistribution:
        return predictions_and_distribution(readings, self.readout.values, self.settings.method)

    def calibrate(
        self,
        prompts: Iterable[Any],
        labels: Sequence[Any],
        batch_size: int = 64,
        *,
        intervals: str | None = None,
        groups: str | Iterable[Any] | None = None,
        label_map: str | None = None,
        round_to_grid: bool = False,
        batch_tokens: int = 4096,
        show_progress: bool | None = None,
    ) -> Calibration:
        """Learn from held-out rows how far the predictions err, for `predict(..., interval=0.9)`.

        ```python
        predictor.calibrate(prompts, labels).save("my-raft-adapter")
        ```

        `from_pretrained` reads the calibration of a folder again.

        Args:
            prompts: as `predict` takes them, neither those of training nor those by which a checkpoint was chosen.
            labels: their targets, as many: numbers or ratings, read as those of a `label` column.
            intervals: `"adaptive"`, whose width follows the distribution, `"quantiles"` of it, or `"constant"`. By
                default adaptive after training by a proper loss of the distribution, else constant.
            groups: cover each group by itself: one name for each prompt, or the column of the rows that names it.
            label_map: learn a map from predictions to labels, for `predict(..., calibrated=True)`: `"affine"`, or
                `"isotonic"`, any that never falls.
            round_to_grid: where all labels are numbers of the grid, give intervals whose ends are such numbers.
            batch_size, batch_tokens, show_progress: as in `predict`.

        Raises:
            ValueError: there are no rows, or labels or predictions that are not numbers; rows without group; too few
                rows for a map; or adaptive intervals of a method without distribution.
        """
        self.calibration = calibrate(
            self,
            prompts,
            labels,
            intervals=intervals,
            groups=groups,
            label_map=label_map,
            round_to_grid=round_to_grid,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )
        return self.calibration

    def calibrated(self) -> Calibration:
        """The calibration, where there is one for the way in which numbers are read.

        Raises:
            ValueError: there is none, or it was made for other settings or weights.
        """
        return usable_calibration(self.calibration, self._calibrated_settings())

    def _calibrated_settings(self) -> dict[str, Any]:
        return calibrated_settings(
            self.settings, self._encoder, self.prompt_form.template, self.model, self.readout.head
        )

    def remarks(self) -> Remarks:
        """What says, once of each kind, what is odd about prompts and labels that are used."""
        limited = METHODS[self.settings.method].limited_by_grid
        return Remarks("", self._encoder, limited_by_grid=limited, renormalize=self.readout.renormalize)

    def predict_distribution(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        calibrated: bool = False,
        show_progress: bool | None = None,
    ) -> GridDistribution:
        """The whole distribution over the grid for each prompt: probabilities, mass on and off the grid, entropy.

        Takes what `predict` takes. The result is on the CPU, over the whole vocabulary, not renormalized.

        Args:
            calibrated: give it at the temperature that `calibrate` found, renormalized over the grid: as sure as it is
                right.

        Raises:
            ValueError: the method gives a number alone, it is not calibrated, or `calibrated` is asked for of a grid
                of one number, which is sure at any temperature.
        """
        if calibrated and self.readout.head.reads_grid:
            refuse_one_number(self.texts)
        temperature = self.calibrated().temperature if calibrated else None
        chunks = self.read(prompts, batch_size, batch_tokens=batch_tokens, show_progress=show_progress)
        _, distribution = self._with_distribution(chunks)
        return distribution if temperature is None else distribution.tempered(temperature)

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
        runner = BatchRunner(
            model=self.model,
            readout=self.readout,
            collate=partial(collate_prompts, self._collator),
            parts=self._parts,
            autocast=self._autocast,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
        )
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
