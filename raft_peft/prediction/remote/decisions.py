"""`RemoteDecisions`: answers to typed questions from a decisions API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tqdm.auto import tqdm

from raft_peft.data.prompts import rows_error
from raft_peft.data.questions.row import QuestionRow
from raft_peft.prediction.questions.answering import Answering, Questions, ReadQuestion
from raft_peft.prediction.questions.calibration import QuestionCalibration
from raft_peft.prediction.remote.completions_api import RefusedError, ServerError
from raft_peft.prediction.remote.decisions_api import APIS
from raft_peft.prediction.remote.model import REFUSALS_IN_A_ROW, RemoteModel


class RemoteDecisions(RemoteModel, Answering):
    """Answers typed questions by a server's decisions API, as `RegressionPredictor.decide` does with a model here.

    ```python
    judge = RemoteDecisions("http://localhost:8000/v1", "tickets-raft")
    answers = judge.decide("Refund me!", {"refund": {"type": "noul", "instructions": "Is a refund asked for?"}})
    ```

    A row is one request. Questions that the server refuses have no answer. The `label_mass` of an answer is NaN where
    the API tells none. Intervals are those of the calibration that `raft-peft serve` gives; other servers have none.

    Args:
        base_url, model: as for [`RemoteModel`].
        api: the shape of its API: `"systemone"`, of Jev, vLLM and `raft-peft serve`, or `"decisions"`, of OpenAI.
        questions: asked where `decide` is given none, by their ids; by default those of the model's training, where
            the server tells them.
        api_key, concurrency, timeout, max_retries: as for [`RemoteModel`].

    Raises:
        ValueError: there is no such API, or the URL is none.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api: str = "systemone",
        questions: Questions | None = None,
        **connection: Any,
    ):
        if api not in APIS:
            raise ValueError(f"There is no decisions API {api!r}. Use one of {', '.join(APIS)}.")
        self._api, self._own_questions = APIS[api], questions
        self.route = self._api.route
        super().__init__(base_url, model, **connection)

    @property
    def questions(self) -> Questions | None:
        return self.described.get("questions") if self._own_questions is None else self._own_questions

    @cached_property
    def question_calibration(self) -> QuestionCalibration | None:
        given = self.described.get("question_calibration")
        return None if given is None else QuestionCalibration.read(given)

    def calibrated_questions(self) -> QuestionCalibration:
        """The calibration of the served model.

        Raises:
            ValueError: the server gives none.
        """
        if self.question_calibration is None:
            raise ValueError(
                f"The server gives no calibration of {self.model!r}, so there are no intervals. Leave `interval` out, "
                "or serve a folder that raft-peft calibrate calibrated with raft-peft serve."
            )
        return self.question_calibration

    def read_questions(
        self,
        rows: Sequence[QuestionRow],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> list[list[ReadQuestion]]:
        """The probabilities of the options of each row's questions, in their order, without those that are refused.

        Args:
            rows: with their questions.
            batch_size, batch_tokens: without effect, since the server makes the batches.
            first_row: the number of the first row, for messages.
            show_progress: whether to show a progress bar; by default where there are more rows than `concurrency`.

        Raises:
            ValueError: a question that cannot be asked, or that the server does not take. The message names the rows.
            ConnectionError: the server cannot be reached, goes on failing, or answers something else.
        """
        requests = self._requests(rows, first_row)
        show_progress = len(rows) > self.concurrency if show_progress is None else show_progress
        errors: list[tuple[int, str]] = []
        read: list[list[ReadQuestion]] = []
        progress = tqdm(total=len(rows), unit="row", disable=not show_progress)
        with self.requests() as (connection, pool), progress:
            futures = [pool.submit(connection.post, request) for request in requests]
            for number, (row, future) in enumerate(zip(rows, futures, strict=True), first_row):
                try:
                    read.append(self._api.read(row, future.result()))
                except RefusedError as error:
                    errors.append((number, str(error)))
                except ServerError as error:
                    raise ServerError(f"Row {number} was not answered. {error}") from error
                if not read and len(errors) == REFUSALS_IN_A_ROW:
                    break
                progress.update()
        if errors:
            raise rows_error(errors)
        return read

    def _requests(self, rows: Sequence[QuestionRow], first_row: int) -> list[Mapping[str, Any]]:
        """The bodies that ask the questions of rows.

        Raises:
            ValueError: the API cannot ask them. The message names the rows.
        """
        errors: list[tuple[int, str]] = []
        requests: list[Mapping[str, Any]] = []
        for number, row in enumerate(rows, first_row):
            try:
                requests.append(self._api.request(self.model, row))
            except ValueError as error:
                errors.append((number, str(error)))
        if errors:
            raise rows_error(errors)
        return requests
