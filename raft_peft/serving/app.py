"""The routes of a server, and what stands in front of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from raft_peft import __version__
from raft_peft.data.questions.question import Question
from raft_peft.methods.readout import Reading
from raft_peft.prediction.questions.predictor import ReadQuestion
from raft_peft.serving import decisions, predictions, systemone
from raft_peft.serving.errors import RequestError, gone, invalid, out_of_time
from raft_peft.serving.limits import Limits
from raft_peft.serving.middleware import LimitBody, RequireKey, error_response
from raft_peft.serving.models import PROMPTS, QUESTIONS, ServedModel, ServedModels
from raft_peft.serving.scheduler import Scheduler
from raft_peft.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

# How often it is looked whether the client of a waiting request is still there, in seconds.
_LOOK = 0.5
# Beyond the deadline of the queue, so that its own message comes first.
_GRACE = 1.0


class ErrorDetails(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorDetails


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request cannot be answered, for the reason that is told.",
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        413: "The body is too large.",
        429: "Too many prompts wait.",
        500: "A mistake of the server.",
        503: "The server is being stopped.",
        504: "The answer took too long.",
    }.items()
}


class Model(BaseModel):
    """A model of the server."""

    model_config = {"extra": "allow"}

    id: str
    object: str = "model"
    created: int
    owned_by: str


class Models(BaseModel):
    """All models."""

    object: str = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether requests are taken."""

    status: str
    waiting_prompts: int


def create_app(
    models: ServedModels,
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    least_mass: float = 0.0,
) -> FastAPI:
    """A server of models, as an ASGI application.

    Args:
        models: by their names.
        limits: what it takes at most.
        api_key: that every request but `/health` has to send; None for none.
        least_mass: the probability of all labels below which a question is refused.
    """
    limits = limits or Limits()
    scheduler = Scheduler(models.compute, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(scheduler.close)

    app = FastAPI(
        title="raft-peft",
        version=__version__,
        description="Numbers, and answers to typed questions, from language models.",
        lifespan=lifespan,
    )
    telemetry = Telemetry(scheduler, frozenset(("/v1/decisions", "/v1/systemone", "/v1/predict", "/v1/models")))
    app.state.scheduler = scheduler
    _add_errors(app)
    _add_information(app, models, scheduler, telemetry)
    _add_answers(app, _Computer(models, limits, scheduler, telemetry), least_mass)
    app.add_middleware(LimitBody, limit=limits.body_bytes)
    if api_key is not None:
        app.add_middleware(RequireKey, key=api_key)
    app.add_middleware(telemetry.middleware)
    return app


@dataclass(frozen=True)
class _Computer:
    """Lets the scheduler compute what requests ask for."""

    models: ServedModels
    limits: Limits
    scheduler: Scheduler
    telemetry: Telemetry

    async def questions(
        self, request: Request, model: ServedModel, state: Any, questions: Sequence[Question], system: str | None
    ) -> tuple[list[ReadQuestion], int, int]:
        """What is read for each question, the tokens of all of them, and those that were computed."""
        encoded, tokens, computed = await asyncio.to_thread(
            model.encode_questions, state, questions, system, self.limits
        )
        kind = model.name, QUESTIONS
        (read,) = await _computed(request, self.scheduler, kind, [encoded], [computed], self.limits)
        self.telemetry.note_answers(len(read), tokens)
        return read, tokens, computed

    async def prompts(self, request: Request, model: ServedModel, prompts: Sequence[Any]) -> tuple[list[Reading], int]:
        """What is read for each prompt, and the tokens of all of them."""
        encoded, tokens = await asyncio.to_thread(model.encode_prompts, prompts, self.limits)
        read = await _computed(request, self.scheduler, (model.name, PROMPTS), encoded, tokens, self.limits)
        self.telemetry.note_answers(len(read), sum(tokens))
        return read, sum(tokens)


def _add_answers(app: FastAPI, computer: _Computer, least_mass: float) -> None:
    models, limits = computer.models, computer.limits

    @app.post("/v1/systemone", responses=_REFUSALS)
    async def systemone_route(body: systemone.SystemOneRequest, request: Request) -> systemone.SystemOneResponse:
        """Answer typed questions about a state, in the shape of Jev and of vLLM."""
        _check_text(body)
        model = models.asked_for(body.model)
        questions = systemone.questions_of(body, model.predictor.questions, limits)
        _check_count("questions", len(questions), limits.questions)
        read, tokens, _ = await computer.questions(request, model, body.state, questions, body.instructions)
        return systemone.response(model.name, read, tokens, least_mass)

    @app.post("/v1/decisions", responses=_REFUSALS)
    async def decisions_route(body: decisions.DecisionRequest, request: Request) -> decisions.DecisionResponse:
        """Answer typed questions about an input, in the shape of OpenAI's Decisions API."""
        model = models.asked_for(body.model)
        state, system = decisions.state_of(body)
        _check_count("questions", len(body.questions), limits.questions)
        questions = decisions.questions_of(body)
        read, tokens, computed = await computer.questions(request, model, state, questions, system)
        return decisions.response(model.name, body, read, tokens, computed, least_mass)

    @app.post("/v1/predict", responses=_REFUSALS, response_model_exclude_unset=True)
    async def predict_route(body: predictions.PredictRequest, request: Request) -> predictions.PredictResponse:
        """Predict a number for each prompt."""
        _check_text(body)
        model = models.asked_for(body.model)
        _check_count("prompts", len(body.prompts), limits.prompts)
        applied, prompts = predictions.with_calibration(model, body)
        read, tokens = await computer.prompts(request, model, prompts)
        return predictions.response(model, body, applied, read, tokens)


def _add_information(app: FastAPI, models: ServedModels, scheduler: Scheduler, telemetry: Telemetry) -> None:
    @app.get("/v1/models", responses={401: _REFUSALS[401]})
    async def models_route() -> Models:
        """The models, with what each was trained on."""
        return Models(data=[Model(**model.described()) for model in models.values()])

    @app.get("/health", responses={503: {"model": Health, "description": "Requests are not taken."}})
    async def health_route(response: Response) -> Health:
        """Whether requests are taken."""
        running = scheduler.is_running
        response.status_code = 200 if running else 503
        return Health(status="ok" if running else "stopping", waiting_prompts=scheduler.waiting)

    @app.get("/metrics", response_class=Response, responses={401: _REFUSALS[401]})
    async def metrics_route() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> JSONResponse:
        if "json" not in request.headers.get("content-type", ""):
            return error_response(
                invalid("The body is not JSON. Send it with the header `Content-Type: application/json`.")
            )
        return error_response(invalid(_in_words(error.errors())))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        return error_response(RequestError(error.status_code, str(error.detail), kind, dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def mistaken(_: Request, error: Exception) -> JSONResponse:
        # What went wrong is in the log of the server. It may hold what others have sent.
        return error_response(RequestError(500, "The server has made a mistake.", "server_error"))


async def _computed(
    request: Request,
    scheduler: Scheduler,
    kind: tuple[str, str],
    items: Sequence[Any],
    tokens: Sequence[int],
    limits: Limits,
) -> list[Any]:
    """The results of items, for as long as their client waits for them."""
    future: Future[list[Any]] = scheduler.submit(kind, items, tokens)
    waited = asyncio.wrap_future(future)
    end = asyncio.get_running_loop().time() + limits.seconds + _GRACE
    try:
        while not waited.done():
            await asyncio.wait([waited], timeout=_LOOK)
            if not waited.done() and await request.is_disconnected():
                raise gone()
            if not waited.done() and asyncio.get_running_loop().time() > end:
                raise out_of_time(limits.seconds)
        return waited.result()
    finally:
        # Nothing is computed for a client that has gone.
        future.cancel()


def _check_text(body: BaseModel) -> None:
    """Refuse halves of characters, which JSON can hold and no tokenizer takes."""
    try:
        json.dumps(body.model_dump(), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise invalid(f"The body holds half a character, {error.object[error.start]!a}. Send whole ones.") from None


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise invalid(f"The request has {count:,} {what}, and the server takes {limit:,}. Send it in parts.")


def _in_words(errors: Sequence[Any]) -> str:
    """What is wrong with a body, and where."""
    found = []
    for error in errors[:5]:
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        found.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return f"The body cannot be read. {'; '.join(found)}{more}."
