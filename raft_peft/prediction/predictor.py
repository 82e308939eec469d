"""`RegressionPredictor`: from a saved folder, or a base model and a grid, to numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch

from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.heads import Head
from raft_peft.methods import MethodSettings
from raft_peft.methods.readout import Reading
from raft_peft.methods.saved_folder import hub_options
from raft_peft.prediction.calibrating.applied import AppliedCalibration
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.calibrating.fitting import calibrate
from raft_peft.prediction.calibrating.temperature import refuse_one_number
from raft_peft.prediction.calibrating.weights import calibrated_settings, usable_calibration
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
from raft_peft.prediction.reading import PromptReader
from raft_peft.prediction.reasoning.reasoned import ReasonedPredictions
from raft_peft.prediction.reasoning.writer import (
    MAX_REASONING_TOKENS,
    READING_OPTIONS,
    ReasoningOptions,
    ReasoningWriter,
)
from raft_peft.prediction.reward import RegressionReward, reward_of


class RegressionPredictor(PromptReader):
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
        score_prefix: the words between a reasoning and its number, see [`RegressionAwareConfig`]. With them a row may
            have a `reasoning`, or several, and `num_reasonings` of `predict` lets the model write them.
        settings: of [`MethodSettings`]: `method`, `decision`, `renormalize` and so on.

    Raises:
        ValueError: settings that do not exist or do not go together, a model that cannot be read like this, or a
            method whose head nobody trained.
    """

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
        beside: Any = None,
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
            beside: a predictor's model, on whose base this adapter is opened too; `model.set_adapter` tells which of
                them counts.
            model_kwargs: `question_template`, `score_prefix`; the rest of [`MethodSettings`], which a trained
                head has to have been trained with; all else goes to the model's `from_pretrained`, as
                `attn_implementation` or `token`.

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
        more = ("question_template", "score_prefix", *(one.name for one in fields(MethodSettings)))
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
            beside=beside,
            **model_kwargs,
        )
        predictor = cls(**opened)
        predictor.calibration, predictor.question_calibration = saved_calibrations(name, hub_options(model_kwargs))
        return predictor

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
        num_reasonings: int = 0,
        temperature: float = 1.0,
        max_reasoning_tokens: int = MAX_REASONING_TOKENS,
        seed: int | None = None,
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
                common; a longer prompt is run alone. On a CPU 512 at most, where more are not faster.
            interval: the share of labels that intervals around the predictions are to cover, such as 0.9, after
                `calibrate`; see [`Calibration`].
            groups: after `calibrate(..., groups=...)`, the group of each prompt, or the column of the rows that names
                it; by default the column of then.
            calibrated: map the predictions to labels, after `calibrate(..., label_map=...)`.
            return_distribution: whether to give the distributions too, as `predict_distribution` does, without a
                second pass.
            num_reasonings: so many reasonings are written for each prompt, and the number is read behind each. The
                prediction is that of the mean of their distributions. With 0, nothing is written: numbers are read
                behind the reasonings that rows have, if any.
            temperature: by which reasonings are drawn; 0 for the most likely one.
            max_reasoning_tokens: the most tokens of a reasoning. One that does not end by then is closed with the
                words that lead to the score; a warning says how many, and `predict_with_reasons` which.
            seed: of the random numbers by which reasonings are drawn; by default torch's own.
            show_progress: whether to show a progress bar; by default where there is more than one batch.

        Returns:
            The numbers in the unit of the labels, float32, of shape (prompts,), in the order of the prompts. With
            `interval` or `return_distribution` a named tuple: these as `predictions`, then the ends of the intervals
            as `low` and `high`, then `distribution`, whichever were asked for.

        Raises:
            ValueError: intervals were asked for, and there is no calibration for them, or on too few rows; or
                distributions, and the method gives a number alone.
        """
        writer = self.writer(
            num_reasonings,
            temperature=temperature,
            max_reasoning_tokens=max_reasoning_tokens,
            seed=seed,
            batch_size=batch_size,
        )
        # What cannot be given is refused now, not after hours of prediction.
        applied = AppliedCalibration.of_predictor(
            self, interval=interval, mapped=calibrated, groups=groups, writer=writer
        )
        prompts = applied.prompts(prompts)
        options: Any = {"batch_tokens": batch_tokens, "show_progress": show_progress, "writer": writer}
        chunks = self.read(prompts, batch_size, **options)
        both = return_distribution or applied.needs_distribution
        predictions, distribution = self._with_distribution(chunks) if both else (predictions_of(chunks), None)
        predictions, ends = applied.of(predictions, distribution)
        return as_asked(predictions, ends, distribution if return_distribution else None)

    def predict_with_reasons(
        self,
        prompts: Iterable[Any],
        num_reasonings: int = 1,
        *,
        temperature: float = 1.0,
        max_reasoning_tokens: int = MAX_REASONING_TOKENS,
        seed: int | None = None,
        batch_size: int = 64,
        batch_tokens: int = 4096,
        show_progress: bool | None = None,
    ) -> ReasonedPredictions:
        """What `predict` gives, with the reasonings, the number behind each, and how far these differ.

        Takes what `predict` takes; with `num_reasonings=0`, the reasonings of the rows are read.

        Raises:
            ValueError: as `predict`; or no words are known that lead from a reasoning to its score.
        """
        writer = self.writer(
            num_reasonings,
            temperature=temperature,
            max_reasoning_tokens=max_reasoning_tokens,
            seed=seed,
            batch_size=batch_size,
        )
        options: Any = {"batch_tokens": batch_tokens, "show_progress": show_progress, "writer": writer}
        return ReasonedPredictions.of(self.read_reasonings(prompts, batch_size, **options))

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
        **reasoning: Unpack[ReasoningOptions],
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
            reasoning: `num_reasonings`, `temperature`, `max_reasoning_tokens` and `seed`, as in `predict`. The
                calibration holds for predictions by the same of these, but for the seed.

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
            writer=self.writer(**reasoning, batch_size=batch_size),
        )
        return self.calibration

    def calibrated(self, writer: ReasoningWriter | None = None) -> Calibration:
        """The calibration, where there is one for the way in which numbers are read.

        Args:
            writer: writes the reasonings before the numbers; None where nothing is written.

        Raises:
            ValueError: there is none, or it was made for other settings or weights.
        """
        reasoning = None if writer is None else writer.reading_options()
        return usable_calibration(self.calibration, self._calibrated_settings(reasoning))

    def _calibrated_settings(self, reasoning: Mapping[str, Any] | None = None) -> dict[str, Any]:
        template, head = self.prompt_form.template, self.readout.head
        settings = calibrated_settings(self.settings, self._encoder, template, self.model, head)
        return {**settings, **{name: (reasoning or {}).get(name) for name in READING_OPTIONS}}

    def predict_distribution(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        calibrated: bool = False,
        show_progress: bool | None = None,
        **reasoning: Unpack[ReasoningOptions],
    ) -> GridDistribution:
        """The whole distribution over the grid for each prompt: probabilities, mass on and off the grid, entropy.

        Takes what `predict` takes. The result is on the CPU, over the whole vocabulary, not renormalized.

        Args:
            calibrated: give it at the temperature that `calibrate` found, renormalized over the grid: as sure as it is
                right.
            reasoning: `num_reasonings`, `temperature`, `max_reasoning_tokens` and `seed`, as in `predict`.

        Raises:
            ValueError: the method gives a number alone, it is not calibrated, or `calibrated` is asked for of a grid
                of one number, which is sure at any temperature.
        """
        if calibrated and self.readout.head.reads_grid:
            refuse_one_number(self.texts)
        writer = self.writer(**reasoning, batch_size=batch_size)
        temperature = self.calibrated(writer).temperature if calibrated else None
        options: Any = {"batch_tokens": batch_tokens, "show_progress": show_progress, "writer": writer}
        chunks = self.read(prompts, batch_size, **options)
        _, distribution = self._with_distribution(chunks)
        return distribution if temperature is None else distribution.tempered(temperature)

    def as_reward(self, template: Any = None, **options: Any) -> RegressionReward:
        """The predictor as a reward function of TRL's `GRPOTrainer` and `RLOOTrainer`.

        ```python
        reward = predictor.as_reward("Question: {prompt} Answer: {completion} Score (1-5):")
        trainer = GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=rows)
        ```

        Args:
            template: the prompt of this predictor, with `{prompt}`, `{completion}` and the columns of the rows. By
                default that of training.
            options: `prompt_column` and `completion_column`, where the template calls them otherwise; `batch_size`
                and `batch_tokens`, as in `predict`.

        Raises:
            ValueError: there is no template, or none with a completion.
        """
        return reward_of(self, template, **options)
