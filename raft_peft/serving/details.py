"""What a server tells of a model: enough to predict with it from Python as from its folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raft_peft.serving.models import ServedModel


def details_of(model: ServedModel) -> dict[str, Any]:
    """The answer of `/v1/models/NAME`, which [`RemoteModel`] reads: the entry of `/v1/models`, and

    - of a model with a grid its texts, the `distribution`'s numbers with their texts (None where it gives numbers
      alone), how numbers are read and prompts written, and the calibration;
    - the calibration of its questions;
    - a `fingerprint` of its weights and settings, by which a file of predictions is continued with the same alone.
    """
    predictor, told = model.predictor, model.described()
    told["fingerprint"] = model.fingerprint
    told["computes_in_half"] = predictor.computes_in_half
    questions = model.question_calibration
    told["question_calibration"] = None if questions is None else questions.as_dict()
    if not model.gives_numbers:
        return told
    template, values = predictor.prompt_form.template, predictor.readout.values.tolist()
    return {
        **told,
        "texts": list(predictor.grid.texts),
        "distribution": (
            list(zip(values, predictor.texts, strict=True)) if predictor.readout.head.reads_grid else None
        ),
        "decision": predictor.settings.decision,
        "renormalize": predictor.readout.renormalize,
        "sums_to_one": predictor.sums_to_one,
        "prompt_template": None if template is None else template.template,
        "calibration": asdict(model.calibration()) if model.is_calibrated else None,
    }
