"""`RemoteRegressionPredictor`: numbers from a model behind an OpenAI-compatible server."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from tqdm.auto import tqdm

from raft_peft.data.labels import range_of_grid
from raft_peft.data.prompt_form import PromptForm
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.prompts import EncodedPrompt, PromptEncoder, rows_error
from raft_peft.data.reasoning.reasonings import ScorePrefix
from raft_peft.data.remarks import Remarks
from raft_peft.decisions import decide
from raft_peft.grid import NumberGrid
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.pretrained import open_tokenizer
from raft_peft.methods.readout import Reading
from raft_peft.methods.renormalization import renormalizes, resolve_renormalize
from raft_peft.methods.saved_folder import RAFT_CONFIG_NAME, RaftConfig
from raft_peft.prediction.batching import chunks
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.predictions import Predictions, PredictionsWithDistribution, as_asked, predictions_of
from raft_peft.prediction.remote.completions_api import Connection, RefusedError, ServerError
from raft_peft.prediction.remote.dialects import Answer, SpokenDialect
from raft_peft.prediction.remote.model import REFUSALS_IN_A_ROW, RemoteModel
from raft_peft.prediction.remote.partial_distribution import PartialGridDistribution
from raft_peft.prediction.remote.without_reasonings import WithoutReasonings

logger = logging.getLogger(__name__)

# Methods that read nothing but the next token's probabilities of the grid.
_READ_FROM_GRID = ("raft", "rail", "mbr", "crps", "soft_ce", "rps", "number_token_loss")
# A prompt whose error could be greater than this share of the grid's range (of one number: from 0 to it) is asked
# again, for more tokens.
_NEGLIGIBLE = 1e-3


class RemoteRegressionPredictor(WithoutReasonings, RemoteModel):
    """Predicts numbers with a model behind an OpenAI-compatible server, as `RegressionPredictor` does with one here.

    ```python
    predictor = RemoteRegressionPredictor.from_saved("http://localhost:8000/v1", "stars", "stars-raft")
    stars = predictor.predict(["Review: It broke on day two. Stars:", "Review: Best purchase ever. Stars:"])
    ```

    Prompts are tokenized here, and sent as token ids to `/completions`; the server answers with log-probabilities of
    the next token. Which of them it can give is found out with the first prompts: vLLM gives exactly those of the
    grid, other servers the most probable ones. A number that is not among these counts as 0. A prompt for which that
    could matter, by more than a thousandth of the grid's range, is asked again for more tokens where the server gives
    more. What the error is at most is logged once, and given for each prompt by
    `predict_distribution(prompts).error_bound(rule)`, see [`PartialGridDistribution`].

    It can be used in a running event loop, and by several threads. See docs/serving.md for servers.

    Args:
        base_url: of the server, such as `http://localhost:8000/v1`.
        model: the name under which the server knows the model.
        grid: the numbers that it may answer with, as for [`RegressionAwareTrainer`]; each must be one token.
        tokenizer: the model's, or the folder or Hub repository to take it from; by default that of the name `model`.
        separator: text between prompt and number; None for the default, see [`RegressionAwareConfig`].
        max_length: the most tokens of a prompt; a longer one loses its beginning. None for no limit.
        api_key, concurrency, timeout, max_retries: as for [`RemoteModel`].
        prompt_template, prompt_shape: as for [`RegressionPredictor`].
        score_prefix: the words between a row's `reasoning` and its number. A row has one reasoning here, which is
            given: to let the model write several, open it with [`RegressionPredictor`].
        settings: of [`MethodSettings`]: `decision`, `renormalize` and so on.

    Raises:
        ValueError: settings that do not exist or do not go together, or that a server cannot serve.
    """

    route = "completions"
    # A server has neither the heads nor the calibration of the folder.
    calibration: Calibration | None = None
    reads_text, sums_to_one, computes_in_half = False, False, False

    def __init__(
        self,
        base_url: str,
        model: str,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid,
        *,
        tokenizer: Any = None,
        separator: str | None = None,
        max_length: int | None = None,
        prompt_template: str | Sequence[Mapping[str, str]] | PromptTemplate | None = None,
        prompt_shape: Any = None,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        max_retries: int = 5,
        score_prefix: str | None = None,
        **settings: Any,
    ):
        super().__init__(
            base_url, model, api_key=api_key, concurrency=concurrency, timeout=timeout, max_retries=max_retries
        )
        self.settings = MethodSettings(**settings)
        self.settings.check_method()
        _check_servable(self.settings)
        self.grid = NumberGrid(grid)
        resolve_renormalize(self.settings, self.grid)
        check_grid(self.settings, self.grid)
        self.prompt_form = PromptForm(PromptTemplate.of(prompt_template), prompt_shape)
        self.tokenizer = _tokenizer(model if tokenizer is None else tokenizer)
        self._encoder = PromptEncoder(
            self.tokenizer,
            self.grid,
            separator=separator,
            max_length=max_length,
            number_end=self.settings.end_of_numbers(self.tokenizer),
            score_prefix=None if score_prefix is None else ScorePrefix(score_prefix),
        )
        self._values = torch.tensor(self.grid.values, dtype=torch.float32)
        self._dialect: SpokenDialect | None = None
        self._error_was_logged = False

    @classmethod
    def from_saved(
        cls, base_url: str, model: str, folder: str | Path, *, method: str | None = None, **options: Any
    ) -> RemoteRegressionPredictor:
        """With the grid, tokenizer, separator and settings of a folder that was saved here, whose model is served.

        Args:
            base_url: of the server, such as `http://localhost:8000/v1`.
            model: the name under which the server knows the model.
            folder: what `trainer.save_model` or `merge_and_save` wrote, or its Hub repository. Its weights are not
                read.
            method: instead of the saved one. `rail` reads the probabilities of a model that was trained to answer with
                text.
            options: of [`RemoteRegressionPredictor`], instead of what was saved.

        Raises:
            ValueError: there is no `raft_config.json`, it does not fit the tokenizer, or a server cannot serve the
                method.
        """
        saved = RaftConfig.find(folder, {})
        if saved is None:
            raise ValueError(
                f"{str(folder)!r} has no {RAFT_CONFIG_NAME}. Pass a folder that RegressionAwareTrainer.save_model "
                "wrote, or construct RemoteRegressionPredictor(base_url, model, grid, tokenizer=...)."
            )
        if saved.head is not None and method is None:
            raise ValueError(f"{str(folder)!r} was trained with a head of your own, {saved.head}. {_NO_HEADS}")
        options["tokenizer"] = _tokenizer(options.get("tokenizer", folder))
        saved.check_tokens(options["tokenizer"])
        settings = {**saved.settings_for(method, decodes=False), **saved.form_of_prompts()}
        return cls(base_url, model, options.pop("grid", saved.grid), **{**settings, **options})

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the numbers, in the order of a distribution's values."""
        return self.grid.texts

    @overload
    def predict(
        self,
        prompts: Iterable[Any],
        *,
        return_distribution: Literal[False] = False,
        show_progress: bool | None = None,
    ) -> np.ndarray: ...

    @overload
    def predict(
        self, prompts: Iterable[Any], *, return_distribution: Literal[True], show_progress: bool | None = None
    ) -> PredictionsWithDistribution: ...

    def predict(
        self, prompts: Iterable[Any], *, return_distribution: bool = False, show_progress: bool | None = None
    ) -> Predictions:
        """Predict one number for each prompt.

        Args:
            prompts: texts, chats (lists of messages), or rows (dicts with `prompt`, and for a chat optionally
                `tools` and `chat_template_kwargs`). Any iterable; it is read as it is needed.
            return_distribution: whether to give the distributions too, as `predict_distribution` does, from the same
                requests.
            show_progress: whether to show a progress bar; by default where there are more prompts than `concurrency`.

        Returns:
            The numbers in the unit of the labels, float32, of shape (prompts,), in the order of the prompts. With a
            rule that speaks of the grid alone (any but the mean that is not renormalized), NaN where the server
            returned the probability of none of its numbers. With `return_distribution` a named tuple of these as
            `predictions`, and `distribution`.

        Raises:
            ValueError: prompts that cannot be used, or that the server refuses. The message names the rows, and gives
                the server's words.
            ConnectionError: the server cannot be reached, goes on failing, or returns no log-probabilities.
        """
        readings = self.read(prompts, show_progress=show_progress)
        if not return_distribution:
            return predictions_of(readings)
        whole = list(readings)
        return as_asked(predictions_of(whole), None, self._distribution(whole))

    def predict_distribution(
        self, prompts: Iterable[Any], *, show_progress: bool | None = None
    ) -> PartialGridDistribution:
        """The whole distribution over the grid for each prompt, over the whole vocabulary, not renormalized.

        Takes what `predict` takes, and raises what it raises. Its `missing` says which numbers the server did not
        return, and its `error_bound` how much that matters.
        """
        return self._distribution(self.read(prompts, show_progress=show_progress))

    def _distribution(self, readings: Iterable[RemoteReading]) -> PartialGridDistribution:
        parts = [reading.distribution for reading in readings]
        none = torch.empty(0, len(self.grid))
        return PartialGridDistribution(
            torch.cat([none, *(part.log_probs for part in parts)]),
            self._values,
            torch.cat([none[:, 0], *(part.ceiling for part in parts)]),
            torch.cat([none[:, 0], *(part.rest for part in parts)]),
        )

    def remarks(self) -> Remarks:
        """What says, once of each kind, what is odd about prompts and labels that are used."""
        return Remarks("", self._encoder, limited_by_grid=True, renormalize=self._renormalize)

    def calibrated(self, writer: None = None) -> Calibration:
        """There is no calibration of a model behind `/completions`.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Behind /v1/completions a model has no calibration. Leave `interval` and `calibrated` out, or ask "
            "raft-peft serve by `api=predict`."
        )

    def identity(self) -> dict[str, Any]:
        """See [`RemoteModel`]; with the settings, which are those of this side."""
        template = self.prompt_form.template
        return {
            **super().identity(),
            **self.settings.reading_settings(),
            "separator": self._encoder.separator,
            "max_length": self._encoder.max_length,
            "grid": [list(pair) for pair in self.grid],
            "prompt_template": template and template.template,
        }

    def read(
        self,
        prompts: Iterable[Any],
        batch_size: int | None = None,
        *,
        batch_tokens: int | None = None,
        chunk_size: int = 4096,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> Iterator[RemoteReading]:
        """What `predict` and `predict_distribution` give, for so many prompts at a time, as they are read.

        Takes what `predict` takes, and raises what it raises.

        Args:
            batch_size, batch_tokens: without effect, since the server makes the batches.
            chunk_size: the prompts that are tokenized together; their readings come together, in order.
            first_row: the number of the first of them, for messages.

        Yields:
            A [`RemoteReading`] of each chunk.
        """
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be 1 or more.")
        total = len(prompts) if isinstance(prompts, Sized) else None
        show_progress = (total is None or total > self.concurrency) if show_progress is None else show_progress
        error_bounds: list[torch.Tensor] = []
        remarks = self.remarks()
        with self.requests() as asked, tqdm(total=total, unit="prompt", disable=not show_progress) as progress:
            for chunk in chunks(self.prompt_form.rows(prompts, first_row), chunk_size):
                if first_row == 0:
                    self.prompt_form.warn_of_others(chunk)
                encoded = self._encoder.encode(chunk, first_row)
                _check_single_tokens(encoded, self.grid, first_row)
                remarks.on_encoded(encoded)
                reading = self._reading(self._answers(*asked, encoded, first_row, progress))
                first_row += len(chunk)
                missing = reading.distribution.missing.any(-1)
                error_bounds.append(torch.where(missing, self._error_bound(reading.distribution), torch.nan))
                yield reading
        self._log_error(torch.cat([torch.empty(0), *error_bounds]))

    def _answers(
        self,
        connection: Connection,
        pool: ThreadPoolExecutor,
        prompts: Sequence[EncodedPrompt],
        first_row: int,
        progress: Any,
    ) -> list[Answer]:
        """What the server says of each prompt.

        Raises:
            ValueError, ServerError: as `predict` does.
        """
        errors: list[tuple[int, str]] = []
        numbered = list(enumerate(prompts, first_row))
        row = first_row
        try:
            while self._dialect is None and numbered and len(errors) < REFUSALS_IN_A_ROW:
                row, prompt = numbered[0]
                try:
                    self._dialect = SpokenDialect.found_with(connection, prompt, self.tokenizer)
                except RefusedError as error:
                    errors.append((row, str(error)))
                    del numbered[0]
            dialect = self._dialect
            if dialect is None:
                raise rows_error(errors)
            answers = []
            futures = [(row, pool.submit(dialect.ask, connection, prompt, self._suffices)) for row, prompt in numbered]
            for row, future in futures:
                try:
                    answers.append(future.result())
                except RefusedError as error:
                    errors.append((row, str(error)))
                progress.update()
        except ServerError as error:
            raise ServerError(f"Row {row} was not predicted. {error}") from error
        if errors:
            raise rows_error(sorted(errors))
        return answers

    def _suffices(self, answer: Answer) -> bool:
        """Whether what a server did not return moves the prediction by little at most."""
        return not self._error_bound(self._reading([answer]).distribution) > self._negligible

    def _reading(self, answers: Sequence[Answer]) -> RemoteReading:
        distribution = PartialGridDistribution(
            torch.tensor([answer.log_probs for answer in answers], dtype=torch.float32).reshape(-1, len(self.grid)),
            self._values,
            torch.tensor([answer.ceiling for answer in answers], dtype=torch.float32),
            torch.tensor([answer.rest for answer in answers], dtype=torch.float32),
        )
        rule = self.settings.decision
        predictions = decide(distribution, rule, renormalize=self._renormalize)
        if rule != "mean" or self._renormalize:
            predictions = predictions.masked_fill(distribution.log_probs.isneginf().all(-1), torch.nan)
        return RemoteReading(predictions, distribution, None)

    def _error_bound(self, distribution: PartialGridDistribution) -> torch.Tensor:
        return distribution.error_bound(self.settings.decision, renormalize=self._renormalize)

    @property
    def _renormalize(self) -> bool:
        return renormalizes(self.settings, self.grid)

    @property
    def _negligible(self) -> float:
        low, high = range_of_grid(self.grid)
        return _NEGLIGIBLE * (high - low)

    def _log_error(self, error_bounds: torch.Tensor) -> None:
        """Log once how many rows lack numbers, and how much that matters.

        Args:
            error_bounds: of shape (rows,), NaN where nothing is missing.
        """
        touched = error_bounds[~error_bounds.isnan()]
        if self._error_was_logged or not len(touched):
            return
        self._error_was_logged = True
        worst = touched.max().item()
        logger.log(
            logging.WARNING if worst > self._negligible else logging.INFO,
            f"For {len(touched) / len(error_bounds):.1%} of the rows the server did not return the log-probabilities "
            "of all numbers of the grid, but those of its most probable tokens. The others count as 0, which moves a "
            f"prediction by {worst:.2g} at most. For each row's bound: predict_distribution(prompts).error_bound("
            f"{self.settings.decision!r}, renormalize={self._renormalize}). vLLM returns all of them.",
        )


@dataclass(frozen=True)
class RemoteReading(Reading):
    """A [`Reading`] of a chunk of prompts whose distribution knows what the server did not return."""

    distribution: PartialGridDistribution


_NO_HEADS = (
    "A server returns the probabilities of tokens, and has no such head. Use RegressionPredictor, or train with "
    f"one of the methods {', '.join(_READ_FROM_GRID)}."
)


def _tokenizer(tokenizer: Any) -> Any:
    """A tokenizer, or that of a folder or Hub repository."""
    return open_tokenizer(str(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer


def _check_servable(settings: MethodSettings) -> None:
    """Refuse what cannot be read off a server's probabilities of the next token.

    Raises:
        ValueError: the message names the setting, the reason and the cure.
    """
    method = METHODS[settings.method]
    if method.reads_text:
        raise ValueError(
            f"Method {settings.method!r} reads the number from decoded text. Pass `method='rail'` to read the same "
            "model's probabilities."
        )
    if settings.method not in _READ_FROM_GRID:
        raise ValueError(f"Method {settings.method!r} has a head that reads the model. {_NO_HEADS}")
    if settings.method == "rail" and settings.num_samples is not None:
        raise ValueError("Sampled `rail` decodes texts. Leave `num_samples` out: `rail` then scores the grid.")
    if settings.attention != "causal":
        raise ValueError(
            f"attention={settings.attention!r}, but servers run decoders with causal attention. Use "
            "RegressionPredictor, or train with `attention='causal'`."
        )


def _check_single_tokens(prompts: Sequence[EncodedPrompt], grid: NumberGrid, first_row: int) -> None:
    """Refuse numbers of several tokens.

    Raises:
        ValueError: the message names the rows and the numbers.
    """
    errors = []
    for row, prompt in enumerate(prompts, first_row):
        for text, ids in zip(grid.texts, prompt.grid_token_ids, strict=True):
            if len(ids) > 1:
                reason = (
                    f"The number {text!r} is {len(ids)} tokens after this prompt, {list(ids)}, and a server returns "
                    "the probabilities of one. Use RegressionPredictor, a grid of single tokens such as 0 to 9, or "
                    "add_number_tokens before training."
                )
                errors.append((row, reason))
                break
    if errors:
        raise rows_error(errors)
