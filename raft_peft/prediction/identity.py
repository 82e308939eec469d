"""What a prediction depends on: the same weights and settings give the same numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from raft_peft.data.questions.form import QuestionForm
from raft_peft.prediction.calibrating.weights import weights_digest
from raft_peft.prediction.number_predictor import NumberPredictor
from raft_peft.prediction.predictor import RegressionPredictor
from raft_peft.prediction.questions.answering import Answering
from raft_peft.prediction.questions.predictor import AnsweringPredictor
from raft_peft.prediction.reasoning.writer import ReasoningWriter
from raft_peft.prediction.remote.model import RemoteModel


def identity_of(
    predictor: NumberPredictor,
    *,
    interval: float | None = None,
    calibrated: bool = False,
    writer: ReasoningWriter | None = None,
) -> dict[str, Any]:
    """What the predictions of a predictor depend on, besides the rows, by names and as JSON can hold it.

    Args:
        predictor: makes the predictions.
        interval, calibrated: as in [`predict_rows`].
        writer: writes the reasonings before the numbers; None where nothing is written.
    """
    calibration = asdict(predictor.calibrated(writer)) if calibrated or interval is not None else None
    return {
        **weights_and_settings(predictor, writer),
        "interval": interval,
        "calibrated": calibrated,
        "seed": None if writer is None else writer.seed,
        "calibration": None if calibration is None else digest_of(calibration),
    }


def identity_of_answers(
    predictor: Answering, form: QuestionForm, *, interval: float | None, distribution: bool
) -> dict[str, Any]:
    """The same, of answers to typed questions.

    Args:
        predictor: gives the answers.
        form: the questions that rows do not bring themselves, and how states are written.
        interval, distribution: as in [`answer_rows`].
    """
    template, calibration = form.template, None
    if interval is not None:
        calibration = {name: one.as_dict() for name, one in predictor.calibrated_questions().questions.items()}
    return {
        **weights_and_question_settings(predictor),
        "questions": form.questions and {name: one.as_dict() for name, one in form.questions.items()},
        "prompt_template": template and template.template,
        "interval": interval,
        "distribution": distribution,
        "calibration": None if calibration is None else digest_of(calibration),
    }


def weights_and_settings(predictor: NumberPredictor, writer: ReasoningWriter | None = None) -> dict[str, Any]:
    """Those of a predictor of numbers, as digests and by names."""
    if isinstance(predictor, RemoteModel):
        return predictor.identity()
    assert isinstance(predictor, RegressionPredictor)
    reasoning = None if writer is None else writer.reading_options()
    return {**predictor._calibrated_settings(reasoning), **_of_model(predictor)}


def weights_and_question_settings(predictor: Answering) -> dict[str, Any]:
    """Those of a predictor of answers, as digests and by names."""
    if isinstance(predictor, RemoteModel):
        return predictor.identity()
    assert isinstance(predictor, AnsweringPredictor)
    return {
        **predictor._question_settings(),
        **_of_model(predictor),
        "attention": predictor.settings.attention,
    }


def fingerprint_of(predictor: RegressionPredictor) -> str:
    """A digest of the weights and settings of a predictor; under an adapter, of the adapter's weights alone."""
    of_numbers = predictor._calibrated_settings() if predictor.has_grid else {}
    return digest_of({**predictor._question_settings(), **of_numbers, "attention": predictor.settings.attention})


def _of_model(predictor: AnsweringPredictor) -> dict[str, Any]:
    template = getattr(predictor.tokenizer, "chat_template", None)
    # Under an adapter, what a calibration knows as `weights` is the adapter's alone.
    under_adapter = hasattr(predictor.model, "peft_config")
    return {
        "base_weights": weights_digest(dict(predictor.model.named_parameters())) if under_adapter else None,
        "autocast": str(predictor._autocast),
        "chat_template": None if template is None else digest_of(template),
    }


def digest_of(value: Any) -> str:
    """A digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
