"""The routes of a server, and what stands in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from raft_peft import __version__
from raft_peft.serving import decisions, predictions, systemone
from raft_peft.serving.computing import Computer, check_text
from raft_peft.serving.details import details_of
from raft_peft.serving.errors import RequestError, invalid
from raft_peft.serving.limits import Limits
from raft_peft.serving.middleware import LimitBody, RequireKey, error_response
from raft_peft.serving.models import ServedModels
from raft_peft.serving.page import PATHS, add_page
from raft_peft.serving.scheduler import Scheduler
from raft_peft.serving.telemetry import Telemetry


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
    page: bool = False,
) -> FastAPI:
    """A server of models, as an ASGI application.

    Args:
        models: by their names.
        limits: what it takes at most.
        api_key: that every request but `/health` has to send; None for none.
        least_mass: the probability of all labels below which a question is refused.
        page: whether there is a page at `/`, which asks for the key by the password of Basic authentication.
    """
    limits = limits or Limits()
    scheduler = Scheduler(models.compute, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if page_lifespan is not None:
                await stack.enter_async_context(page_lifespan)
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
    computer = Computer(models, limits, scheduler, telemetry)
    _add_answers(app, computer, least_mass)
    page_lifespan = add_page(app, computer, least_mass) if page else None
    app.add_middleware(LimitBody, limit=limits.body_bytes)
    if api_key is not None:
        app.add_middleware(RequireKey, key=api_key, page=PATHS if page else ())
    app.add_middleware(telemetry.middleware)
    return app


def _add_answers(app: FastAPI, computer: Computer, least_mass: float) -> None:
    models, limits = computer.models, computer.limits

    @app.post("/v1/systemone", responses=_REFUSALS)
    async def systemone_route(body: systemone.SystemOneRequest, request: Request) -> systemone.SystemOneResponse:
        """Answer typed questions about a state, in the shape of Jev and of vLLM."""
        check_text(body)
        model = models.asked_for(body.model)
        questions = systemone.questions_of(body, model.predictor.questions, limits)
        systemone.check_interval(model, questions, body.interval)
        read, tokens, _ = await computer.questions(
            model, body.state, questions, body.instructions, request.is_disconnected
        )
        return systemone.response(model, read, tokens, least_mass, body.interval)

    @app.post("/v1/decisions", responses=_REFUSALS)
    async def decisions_route(body: decisions.DecisionRequest, request: Request) -> decisions.DecisionResponse:
        """Answer typed questions about an input, in the shape of OpenAI's Decisions API."""
        model = models.asked_for(body.model)
        state, system = decisions.state_of(body)
        questions = decisions.questions_of(body)
        read, tokens, computed = await computer.questions(model, state, questions, system, request.is_disconnected)
        return decisions.response(model.name, body, read, tokens, computed, least_mass)

    @app.post("/v1/predict", responses=_REFUSALS, response_model_exclude_unset=True)
    async def predict_route(body: predictions.PredictRequest, request: Request) -> predictions.PredictResponse:
        """Predict a number for each prompt."""
        return await computer.predict(body, models.asked_for(body.model), request.is_disconnected)


def _add_information(app: FastAPI, models: ServedModels, scheduler: Scheduler, telemetry: Telemetry) -> None:
    @app.get("/v1/models", responses={401: _REFUSALS[401]})
    async def models_route() -> Models:
        """The models, with what each was trained on."""
        return Models(data=[Model(**model.described()) for model in models.values()])

    @app.get("/v1/models/{name:path}", responses={status: _REFUSALS[status] for status in (401, 404)})
    async def model_route(name: str) -> Model:
        """A model, with its grid, its template and its calibration."""
        return Model(**details_of(models.asked_for(name)))

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


def _in_words(errors: Sequence[Any]) -> str:
    """What is wrong with a body, and where."""
    found = []
    for error in errors[:5]:
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        found.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return f"The body cannot be read. {'; '.join(found)}{more}."
