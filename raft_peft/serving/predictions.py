"""`/v1/predict`: a number for each prompt, and on request its distribution, an interval and quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from raft_peft.distribution import GridDistribution
from raft_peft.methods.readout import Reading, joined
from raft_peft.prediction.calibrating.applied import AppliedCalibration
from raft_peft.serving.errors import invalid
from raft_peft.serving.models import ServedModel

Share = Annotated[float, Field(gt=0, lt=1)]


class PredictRequest(BaseModel):
    """Prompts, each of which gets a number."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"prompts": ["Review: Does what it says. Stars:"], "distribution": True}},
    )

    model: str | None = Field(default=None, description="One of /v1/models; by default the first.")
    prompts: list[str | list[dict[str, Any]] | dict[str, Any]] = Field(
        min_length=1,
        description="Each a text, the messages of a chat, or a row: a `prompt`, or the columns of its template.",
    )
    distribution: bool = Field(default=False, description="Also send the probability of each number.")
    interval: Share | None = Field(default=None, description="Also send where this share of labels lies.")
    quantiles: list[Share] = Field(default=[], max_length=100, description="Also send these quantiles.")
    calibrated: bool = Field(default=False, description="Map predictions to labels, as calibration learned it.")


class Prediction(BaseModel):
    """What is predicted for one prompt."""

    prediction: float | None = Field(description="The number; null where a generated text was none.")
    low: float | None = None
    high: float | None = None
    probabilities: dict[str, float] | None = Field(default=None, description="Over the whole vocabulary.")
    mass: float | None = Field(default=None, description="Their sum: the probability of any number of the grid.")
    entropy: float | None = Field(default=None, description="Of the distribution on the grid, in nats.")
    quantiles: dict[str, float] | None = Field(default=None, description="Of the distribution on the grid.")


class PredictUsage(BaseModel):
    """What was computed."""

    input_tokens: int


class PredictResponse(BaseModel):
    """The predictions in the order of the prompts."""

    model: str
    predictions: list[Prediction]
    usage: PredictUsage


def with_calibration(model: ServedModel, request: PredictRequest) -> tuple[AppliedCalibration, list[Any]]:
    """What a request asks of the model's calibration, and its prompts, whose groups are then known.

    Raises:
        RequestError: the model has no grid, or no calibration for it; gives no distribution; or a prompt has no group.
    """
    predictor = model.predictor
    if not predictor.has_grid:
        raise invalid(
            f"The model {model.name!r} was trained on typed questions, and has no grid. Send a state to /v1/systemone."
        )
    if (request.distribution or request.quantiles) and not predictor.readout.head.reads_grid:
        raise invalid(
            f"The model {model.name!r} gives a number alone, by the method {predictor.settings.method}. Leave out "
            "`distribution` and `quantiles`."
        )
    known = model.calibration() if request.calibrated or request.interval is not None else None
    try:
        applied = AppliedCalibration(known, interval=request.interval, mapped=request.calibrated)
        return applied, list(applied.prompts(request.prompts))
    except ValueError as error:
        raise invalid(str(error)) from error


def response(
    model: ServedModel,
    request: PredictRequest,
    applied: AppliedCalibration,
    read: Sequence[Reading],
    tokens: int,
) -> PredictResponse:
    """The predictions as they are sent.

    Args:
        model: which made them.
        request: with the prompts.
        applied: of `with_calibration`.
        read: of each prompt.
        tokens: of all of them.

    Raises:
        RequestError: an interval cannot be given.
    """
    whole = joined(read)
    distribution = whole.distribution
    try:
        numbers, ends = applied.of(whole.predictions.numpy(), distribution)
    except ValueError as error:
        raise invalid(str(error)) from error
    found = [Prediction(prediction=_finite(number)) for number in numbers]
    if ends is not None:
        for one, low, high in zip(found, *ends, strict=True):
            one.low, one.high = float(low), float(high)
    if distribution is not None and (request.distribution or request.quantiles):
        _add_distribution(found, request, distribution, model.predictor.texts)
    return PredictResponse(model=model.name, predictions=found, usage=PredictUsage(input_tokens=tokens))


def _add_distribution(
    found: list[Prediction], request: PredictRequest, distribution: GridDistribution, texts: Sequence[str]
) -> None:
    if request.distribution:
        probs, masses, entropies = (
            distribution.probs.tolist(),
            distribution.mass.tolist(),
            distribution.entropy.tolist(),
        )
        for one, shares, mass, entropy in zip(found, probs, masses, entropies, strict=True):
            one.probabilities, one.mass, one.entropy = dict(zip(texts, shares, strict=True)), mass, entropy
    for share in request.quantiles:
        for one, value in zip(found, distribution.quantile(share).tolist(), strict=True):
            one.quantiles = {**(one.quantiles or {}), f"{share:g}": value}


def _finite(number: np.floating) -> float | None:
    return float(number) if np.isfinite(number) else None
