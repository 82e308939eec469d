"""What a prediction depends on: the same weights and settings give the same numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from raft_peft.prediction.calibrated_weights import weights_digest
from raft_peft.prediction.predictor import RegressionPredictor


def identity_of(
    predictor: RegressionPredictor, *, interval: float | None = None, calibrated: bool = False
) -> dict[str, Any]:
    """What the predictions of a predictor depend on, besides the rows, by names and as JSON can hold it.

    Args:
        predictor: makes the predictions.
        interval, calibrated: as in [`predict_rows`].
    """
    template = getattr(predictor.tokenizer, "chat_template", None)
    calibration = asdict(predictor.calibrated()) if calibrated or interval is not None else None
    # Under an adapter, what a calibration knows as `weights` is the adapter's alone.
    under_adapter = hasattr(predictor.model, "peft_config")
    return {
        **predictor._calibrated_settings(),
        "base_weights": weights_digest(dict(predictor.model.named_parameters())) if under_adapter else None,
        "autocast": str(predictor._autocast),
        "interval": interval,
        "calibrated": calibrated,
        "calibration": None if calibration is None else _digest(calibration),
        "chat_template": None if template is None else _digest(template),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
