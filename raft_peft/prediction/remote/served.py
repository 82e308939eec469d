"""`ServedRegressionPredictor`: numbers from a model behind `raft-peft serve`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from tqdm.auto import tqdm

from raft_peft.data.chats import CHAT_COLUMNS
from raft_peft.data.prompt_form import PromptForm
from raft_peft.data.prompt_template import PROMPT, PromptTemplate
from raft_peft.data.prompts import rows_error
from raft_peft.data.remarks import Remarks
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.readout import Reading
from raft_peft.prediction.batching import chunks
from raft_peft.prediction.calibrating.applied import AppliedCalibration
from raft_peft.prediction.calibrating.calibration import Calibration, read_calibration
from raft_peft.prediction.predictions import Predictions, as_asked, predictions_and_distribution, predictions_of
from raft_peft.prediction.remote.completions_api import Connection, NotFoundError, RefusedError, ServerError
from raft_peft.prediction.remote.model import REFUSALS_IN_A_ROW, RemoteModel
from raft_peft.prediction.remote.without_reasonings import WithoutReasonings

_OTHERS = (
    "Servers other than raft-peft serve give numbers by `api=completions`, and typed questions are asked by "
    "`api=systemone`."
)
# The prompts of a request. The server takes more, and answers the first sooner where there are fewer.
_PROMPTS = 32


class ServedRegressionPredictor(WithoutReasonings, RemoteModel):
    """Predicts numbers by `/v1/predict` of `raft-peft serve`, as `RegressionPredictor` does with the folder itself.

    ```python
    predictor = ServedRegressionPredictor("http://localhost:8000/v1", "stars-raft")
    stars = predictor.predict(["Review: It broke on day two. Stars:", "Review: Best purchase ever. Stars:"])
    ```

    The server writes the tokens and runs the model, with any grid and any head. Its grid, its prompt template and its
    calibration come from there too, so that predictions, distributions and intervals are those of the folder.

    Args:
        base_url, model: as for [`RemoteModel`].
        prompt_template: writes the prompts of rows; by default that of the model's training.
        api_key, concurrency, timeout, max_retries: as for [`RemoteModel`].

    Raises:
        ValueError: the model predicts no numbers, or its template would be applied twice.
        ConnectionError: the server cannot be reached, or has no such model.
    """

    route = "predict"
    max_length: int | None = None

    def __init__(self, base_url: str, model: str, *, prompt_template: Any = None, **connection: Any):
        super().__init__(base_url, model, **connection)
        try:
            told = self.describe()
        except NotFoundError as error:
            raise NotFoundError(f"{error} {_OTHERS}") from error
        if "texts" not in told:
            raise ValueError(f"The model {model!r} of {self.shown} predicts no numbers. {_OTHERS}")
        self.described = told
        self.grid = NumberGrid(dict(zip(told["grid"], told["texts"], strict=True)))
        self.settings = MethodSettings(method=told["method"], decision=told["decision"])
        self.reads_text, self.sums_to_one = METHODS[self.settings.method].reads_text, bool(told["sums_to_one"])
        # The numbers that there are probabilities for, and their texts; None where there are none.
        self._choices: list[tuple[float, str]] | None = told["distribution"]
        self._values = torch.tensor([value for value, _ in self._choices or ()], dtype=torch.float32)
        self._renormalize = bool(told["renormalize"])
        self.calibration = None if told["calibration"] is None else read_calibration(told["calibration"])
        self._served_template = PromptTemplate.of(told["prompt_template"])
        own = PromptTemplate.of(prompt_template)
        if own is not None and self._writes_again:
            raise ValueError(
                f"The server writes prompts by {self._served_template!r}, also those that `prompt_template` has "
                "written. Leave `prompt_template` out."
            )
        self.prompt_form = PromptForm(self._served_template if own is None else own)
        self._own_template = None if own is None else own.template

    @property
    def _writes_again(self) -> bool:
        """Whether the server's template writes a prompt of a prompt."""
        return self._served_template is not None and PROMPT in self._served_template.columns

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the numbers that there are probabilities for, in the order of a distribution's values."""
        return self.grid.texts if self._choices is None else tuple(text for _, text in self._choices)

    def remarks(self) -> Remarks:
        """What says, once of each kind, what is odd about labels that are used."""
        limited = METHODS[self.settings.method].limited_by_grid
        return Remarks("", self, limited_by_grid=limited, renormalize=self._renormalize)

    def calibrated(self, writer: None = None) -> Calibration:
        """The calibration of the served model.

        Raises:
            ValueError: it has none.
        """
        if self.calibration is None:
            raise ValueError(
                f"The model {self.model!r} of {self.shown} is not calibrated. Calibrate the folder with raft-peft "
                "calibrate, and serve it anew."
            )
        return self.calibration

    def identity(self) -> dict[str, Any]:
        """See [`RemoteModel`]; with the template of this side."""
        return {**super().identity(), "prompt_template": self._own_template}

    def predict(
        self,
        prompts: Iterable[Any],
        *,
        interval: float | None = None,
        groups: str | Iterable[Any] | None = None,
        calibrated: bool = False,
        return_distribution: bool = False,
        show_progress: bool | None = None,
    ) -> Predictions:
        """Predict one number for each prompt. Takes and gives what [`RegressionPredictor.predict`] does.

        Raises:
            ValueError: prompts that cannot be used, or what the model cannot give. The message names the rows.
            ConnectionError: the server cannot be reached, goes on failing, or answers something else.
        """
        applied = AppliedCalibration.of_predictor(self, interval=interval, mapped=calibrated, groups=groups)
        readings = list(self.read(applied.prompts(prompts), show_progress=show_progress))
        predictions, distribution = predictions_of(readings), None
        if return_distribution or applied.needs_distribution:
            _, distribution = predictions_and_distribution(readings, self._values, self.settings.method)
        predictions, ends = applied.of(predictions, distribution)
        return as_asked(predictions, ends, distribution if return_distribution else None)

    def read(
        self,
        prompts: Iterable[Any],
        batch_size: int | None = None,
        *,
        batch_tokens: int | None = None,
        chunk_size: int = 4096,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> Iterator[Reading]:
        """What `predict` gives, for so many prompts at a time, as they are read.

        Takes what `predict` takes, and raises what it raises.

        Args:
            batch_size, batch_tokens: without effect, since the server makes the batches.
            chunk_size: the prompts whose readings come together, in order.
            first_row: the number of the first of them, for messages.
        """
        total = len(prompts) if isinstance(prompts, Sized) else None
        show_progress = (total is None or total > self.concurrency) if show_progress is None else show_progress
        with (
            self.requests() as (connection, pool),
            tqdm(total=total, unit="prompt", disable=not show_progress) as progress,
        ):
            for rows in chunks(self._rows(prompts, first_row), chunk_size):
                some = [rows[start : start + _PROMPTS] for start in range(0, len(rows), _PROMPTS)]
                futures = [pool.submit(self._ask, connection, one) for one in some]
                found: list[Mapping[str, Any]] = []
                for one, future in zip(some, futures, strict=True):
                    row = first_row + len(found)
                    try:
                        found += future.result()
                    except RefusedError as error:
                        raise self._refused(connection, one, row, error) from error
                    except ServerError as error:
                        raise ServerError(f"Row {row} was not predicted. {error}") from error
                    progress.update(len(one))
                first_row += len(rows)
                yield self._reading(found)

    def _rows(self, prompts: Iterable[Any], first_row: int) -> Iterator[Any]:
        """Prompts as they are sent: with what the server reads of them, and no labels."""
        form = PromptForm() if self._writes_again else self.prompt_form
        template = self._served_template
        columns = {PROMPT, *CHAT_COLUMNS, *(template.columns if self._writes_again and template is not None else ())}
        for number, row in enumerate(form.rows(prompts, first_row), first_row):
            sent = {name: value for name, value in row.items() if name in columns and value is not None}
            if sent.get(PROMPT) is None and not self._writes_again:
                missing = self.prompt_form.what_is_missing()
                raise rows_error([(number, f"it has the columns {list(row)}, and {missing}. Rename the column.")])
            try:
                json.dumps(sent, allow_nan=False).encode()
            except (TypeError, ValueError) as error:
                reason = f"{sent!r:.80} cannot be sent as JSON: {error}. Write it as a text."
                raise rows_error([(number, reason)]) from None
            yield sent

    def _ask(self, connection: Connection, prompts: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        """What the server says of some prompts."""
        request = {"model": self.model, "prompts": list(prompts), "distribution": self._choices is not None}
        answer = connection.post(request)
        found = answer.get("predictions") if isinstance(answer, Mapping) else None
        if not isinstance(found, Sequence) or len(found) != len(prompts):
            raise ServerError(
                f"{connection.shown} did not answer with {len(prompts)} predictions: {answer!s:.200}. Is it raft-peft "
                "serve?"
            )
        return found

    def _refused(self, connection: Connection, prompts: Sequence[Any], first_row: int, error: Exception) -> ValueError:
        """An error that names those of some prompts that the server refuses, since it refused them together."""
        errors = []
        for row, prompt in enumerate(prompts, first_row):
            try:
                self._ask(connection, [prompt])
            except RefusedError as refused:
                errors.append((row, str(refused)))
            if len(errors) == REFUSALS_IN_A_ROW:
                break
        return rows_error(errors or [(first_row, str(error))])

    def _reading(self, found: Sequence[Mapping[str, Any]]) -> Reading:
        try:
            numbers = [one["prediction"] for one in found]
            distribution = None
            if self._choices is not None:
                probs = [[one["probabilities"][text] for text in self.texts] for one in found]
                distribution = GridDistribution(torch.tensor(probs, dtype=torch.float64).log().float(), self._values)
            predictions = torch.tensor([float("nan") if one is None else one for one in numbers], dtype=torch.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self.shown} answered without a number or its probabilities: {error!r}.") from None
        return Reading(predictions, distribution, None)
