"""What all ways to ask go through, the routes and the page: the limits, and the queue in front of the models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from raft_peft.data.questions.question import Question
from raft_peft.methods.readout import Reading
from raft_peft.prediction.questions.answering import ReadQuestion
from raft_peft.serving import predictions
from raft_peft.serving.errors import gone, invalid, out_of_time
from raft_peft.serving.limits import Limits
from raft_peft.serving.models import PROMPTS, QUESTIONS, ServedModel, ServedModels
from raft_peft.serving.scheduler import Scheduler
from raft_peft.serving.telemetry import Telemetry

# Whether the client of a request has gone.
IsGone = Callable[[], Awaitable[bool]]

# How often it is looked whether the client of a waiting request is still there, in seconds.
_LOOK = 0.5
# Beyond the deadline of the queue, so that its own message comes first.
_GRACE = 1.0


@dataclass(frozen=True)
class Computer:
    """Lets the scheduler compute what requests ask for."""

    models: ServedModels
    limits: Limits
    scheduler: Scheduler
    telemetry: Telemetry

    async def predict(
        self, body: predictions.PredictRequest, model: ServedModel, is_gone: IsGone
    ) -> predictions.PredictResponse:
        """The predictions of a request.

        Args:
            body: the request.
            model: which is asked.
            is_gone: whether the client has gone.

        Raises:
            RequestError: it is refused.
        """
        check_text(body)
        check_count("prompts", len(body.prompts), self.limits.prompts)
        applied, prompts = predictions.with_calibration(model, body)
        encoded, tokens = await asyncio.to_thread(model.encode_prompts, prompts, self.limits)
        read: list[Reading] = await self._computed((model, PROMPTS), encoded, tokens, is_gone)
        self.telemetry.note_answers(len(read), sum(tokens))
        return predictions.response(model, body, applied, read, sum(tokens))

    async def questions(
        self, model: ServedModel, state: Any, questions: Sequence[Question], system: str | None, is_gone: IsGone
    ) -> tuple[list[ReadQuestion], int, int]:
        """What is read for each question, the tokens of all of them, and those that were computed.

        Args:
            model: which is asked.
            state: a text, JSON, or the messages of a chat.
            questions: about it.
            system: a message before it; None for that of the model's template.
            is_gone: whether the client has gone.

        Raises:
            RequestError: they are refused.
        """
        check_count("questions", len(questions), self.limits.questions)
        encoded, tokens, computed = await asyncio.to_thread(
            model.encode_questions, state, questions, system, self.limits
        )
        (read,) = await self._computed((model, QUESTIONS), [encoded], [computed], is_gone)
        self.telemetry.note_answers(len(read), tokens)
        return read, tokens, computed

    async def _computed(
        self, kind: tuple[ServedModel, str], items: Sequence[Any], tokens: Sequence[int], is_gone: IsGone
    ) -> list[Any]:
        """The results of items, for as long as their client waits for them."""
        future = self.scheduler.submit(kind, items, tokens)
        waited = asyncio.wrap_future(future)
        end = asyncio.get_running_loop().time() + self.limits.seconds + _GRACE
        try:
            while not waited.done():
                await asyncio.wait([waited], timeout=_LOOK)
                if not waited.done() and await is_gone():
                    raise gone()
                if not waited.done() and asyncio.get_running_loop().time() > end:
                    raise out_of_time(self.limits.seconds)
            return waited.result()
        finally:
            # Nothing is computed for a client that has gone.
            future.cancel()


def check_text(body: BaseModel) -> None:
    """Refuse halves of characters, which JSON can hold and no tokenizer takes.

    Raises:
        RequestError: the body has one.
    """
    try:
        json.dumps(body.model_dump(), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise invalid(f"The body holds half a character, {error.object[error.start]!a}. Send whole ones.") from None


def check_count(what: str, count: int, limit: int) -> None:
    """Refuse more prompts or questions than one request may have.

    Raises:
        RequestError: there are more.
    """
    if count > limit:
        raise invalid(f"The request has {count:,} {what}, and the server takes {limit:,}. Send it in parts.")
