"""`RemoteDecisions`: answers to typed questions from a decisions API."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm.auto import tqdm

from raft_peft.data.prompts import rows_error
from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.row import QuestionRow
from raft_peft.prediction.questions.predictor import Questions, question_rows
from raft_peft.prediction.remote.completions_api import Connection, RefusedError, ServerError, url_of
from raft_peft.prediction.remote.decisions_api import APIS


class RemoteDecisions:
    """Answers typed questions by a server's decisions API, as `RegressionPredictor.decide` does with a model here.

    ```python
    judge = RemoteDecisions("http://localhost:8000/v1", "tickets-raft")
    answers = judge.decide("Refund me!", {"refund": {"type": "noul", "instructions": "Is a refund asked for?"}})
    ```

    Args:
        base_url: of the server, such as `http://localhost:8000/v1`.
        model: the name under which the server knows the model.
        api: the shape of its API: `"systemone"`, of Jev, vLLM and `raft-peft serve`, or `"decisions"`, of OpenAI.
        questions: asked where `decide` is given none, by their ids.
        api_key, concurrency, timeout, max_retries: as for [`RemoteRegressionPredictor`].

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
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        max_retries: int = 5,
    ):
        if api not in APIS:
            raise ValueError(f"There is no decisions API {api!r}. Use one of {', '.join(APIS)}.")
        url_of(base_url, api)
        self.base_url, self.model, self.questions = base_url, model, questions
        self._api = APIS[api]
        self._api_key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key
        self._concurrency, self._timeout, self._max_retries = concurrency, timeout, max_retries

    def decide(self, state: Any, questions: Questions | None = None) -> dict[str, Answer]:
        """Answer typed questions about one text.

        Args:
            state: a text, JSON, or the messages of a chat.
            questions: by their ids, see [`Question`].

        Returns:
            An [`Answer`] for each id, but for those that the server refuses. `label_mass` is NaN where the API tells
            none.

        Raises:
            ValueError: a question that cannot be asked, or that the server does not take.
            ConnectionError: the server cannot be reached, goes on failing, or answers something else.
        """
        (answers,) = self.decide_rows([{"state": state}], questions=questions)
        return answers

    def decide_rows(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        questions: Questions | None = None,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> list[dict[str, Answer]]:
        """Answer the typed questions of rows, in their order. A row is one request.

        Args:
            rows: each a `state`, and its `questions` where it does not take those of the call.
            questions: asked of each row that brings none.
            first_row: the number of the first row, for messages.
            show_progress: whether to show a progress bar; by default where there are more rows than `concurrency`.

        Raises:
            ValueError, ConnectionError: as `decide`; the message names the rows.
        """
        asked = self.questions if questions is None else questions
        read = question_rows(rows, asked, first_row)
        requests = [self._api.request(self.model, row) for row in read]
        show_progress = len(read) > self._concurrency if show_progress is None else show_progress
        connection = Connection(
            self.base_url,
            self.model,
            api_key=self._api_key,
            timeout=self._timeout,
            max_retries=self._max_retries,
            connections=self._concurrency,
            route=self._api.route,
        )
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="raft-peft-decisions")
        try:
            with connection, tqdm(total=len(read), unit="row", disable=not show_progress) as progress:
                return self._answers(connection, pool, read, requests, first_row, progress)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answers(
        self,
        connection: Connection,
        pool: ThreadPoolExecutor,
        rows: Sequence[QuestionRow],
        requests: Sequence[Mapping[str, Any]],
        first_row: int,
        progress: Any,
    ) -> list[dict[str, Answer]]:
        futures = [pool.submit(connection.post, request) for request in requests]
        errors: list[tuple[int, str]] = []
        answers: list[dict[str, Answer]] = []
        for number, (row, future) in enumerate(zip(rows, futures, strict=True), first_row):
            try:
                answers.append(self._api.answers(row, future.result()))
            except RefusedError as error:
                errors.append((number, str(error)))
            except ServerError as error:
                raise ServerError(f"Row {number} was not answered. {error}") from error
            progress.update()
        if errors:
            raise rows_error(errors)
        return answers
