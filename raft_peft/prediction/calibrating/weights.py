"""Which weights a calibration was made of: intervals hold for the model that was calibrated, and for no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.prompts import PromptEncoder
from raft_peft.methods import MethodSettings
from raft_peft.methods.saved_folder import HEAD_NAME
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.questions.calibration import QuestionCalibration

# So many elements of each tensor are looked at, evenly spread. All of a tensor that training has moved differ.
_LOOKED_AT = 64
AnyCalibration = TypeVar("AnyCalibration", bound=Calibration | QuestionCalibration)
_OF_QUANTIZATION = ("quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bits")


def calibrated_weights(model: Any, head: torch.nn.Module | None) -> dict[str, Any]:
    """The dtype and quantization of a model, and a digest of its weights: under an adapter, of the adapter's alone.

    The digest is the same for a model in memory and for the folder that it was saved to, on any device. It is None
    where weights lie on the disk.

    Args:
        model: with or without an adapter.
        head: whose weights count too; None where it has no part in what is calibrated.
    """
    found = getattr(model.config, "quantization_config", None)
    quantization = found if found is None or isinstance(found, Mapping) else found.to_dict()
    of_head = {} if head is None else {f"{HEAD_NAME}.{name}": one for name, one in head.named_parameters()}
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": quantization and {name: str(quantization.get(name)) for name in _OF_QUANTIZATION},
        "weights": weights_digest({**_own_weights(model), **of_head}),
    }


def calibrated_settings(
    settings: MethodSettings,
    encoder: PromptEncoder,
    template: PromptTemplate | None,
    model: Any,
    head: torch.nn.Module,
) -> dict[str, Any]:
    """What a calibration depends on: the settings with which numbers are read, and the weights."""
    return {
        **settings.reading_settings(),
        "separator": encoder.separator,
        "max_length": encoder.max_length,
        "grid": [list(pair) for pair in encoder.grid],
        "prompt_template": template and template.template,
        "score_prefix": encoder.score_prefix and encoder.score_prefix.text,
        **calibrated_weights(model, head),
    }


def changed_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the settings and weights that are not those of the calibration; what it does not say is left out.

    Args:
        then: the settings of the calibration, which may be of an earlier version and say nothing of weights.
        now: those at work, with what `calibrated_weights` gives.
    """
    unsaid = {name for name in ("dtype", "quantization", "weights") if name not in then}
    # Without a template prompts come as they are, and may have been written by the same one.
    unknown = {name for name in ("weights", "prompt_template") if None in (then.get(name), now.get(name))}
    return [name for name, value in now.items() if name not in unsaid | unknown and then.get(name) != value]


def usable_calibration(
    calibration: AnyCalibration | None, now: Mapping[str, Any], call: str = "predictor.calibrate(prompts, labels)"
) -> AnyCalibration:
    """A calibration, where there is one for the settings and weights at work.

    Args:
        calibration: of the predictor; None where it has none.
        now: the settings at work, with what `calibrated_weights` gives.
        call: what makes one, for messages.

    Raises:
        ValueError: there is none, or it was made for other settings or weights.
    """
    cure = f"Calibrate on held-out rows first: `{call}`."
    if calibration is None:
        raise ValueError(f"The model is not calibrated. {cure}")
    changed = changed_since(calibration.settings, now)
    if changed:
        raise ValueError(f"The calibration was made with another {', '.join(changed)}. {cure}")
    return calibration


def _own_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights that tell a trained model from another, by names that do not depend on that of the adapter."""
    weights = {name: weight for name, weight in model.named_parameters() if not name.startswith(f"{HEAD_NAME}.")}
    active = getattr(model, "active_adapters", None)
    adapter = active[0] if isinstance(active, list) and len(active) == 1 else None
    of_adapter = {
        ".".join(part for part in name.split(".") if part != adapter): weight
        for name, weight in weights.items()
        if adapter in name.split(".")
    }
    return of_adapter or {name.replace("_orig_mod.", ""): weight for name, weight in weights.items()}


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str | None:
    """A digest of some elements of each tensor, in float32; None where one of them lies on the disk."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        if weight.is_meta:
            return None
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _LOOKED_AT)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
