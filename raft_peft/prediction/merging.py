"""An adapter and its base model as one ordinary model, for servers and libraries that know of no adapters."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer

from raft_peft.data.labels import range_of_grid
from raft_peft.data.prompt_shape import GAP
from raft_peft.messages import warn
from raft_peft.methods.pretrained import with_dtype
from raft_peft.methods.saved_folder import (
    CARD_NAME,
    PICTURE_NAMES,
    RAFT_CONFIG_NAME,
    RaftConfig,
    check_there_is,
    find_file,
    hub_options,
)
from raft_peft.methods.saving import save_beside_weights
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.calibrating.weights import usable_calibration
from raft_peft.prediction.cards import merged_card
from raft_peft.prediction.predictor import RegressionPredictor
from raft_peft.prediction.questions.calibration import CALIBRATE, QuestionCalibration
from raft_peft.prediction.questions.probes import probabilities, question_probes

logger = logging.getLogger(__name__)

_AnyCalibration: TypeAlias = Calibration | QuestionCalibration

# What merging changes in a model it changes for every prompt, though for some by more than for others.
_TEXTS = (
    *("It broke on day two.", "Best purchase ever.", "Does what it says, no more.", "Late, but kind.", "Awful!"),
    *("The screen is bright, and the battery lasts two days.", "I would not buy it again.", "Fine."),
)
# The share of the grid's range by which rounding may move a prediction.
_TOLERANCE = 1e-3
_TOLERANCE_16_BIT = 2e-2
_16_BIT = (torch.bfloat16, torch.float16)


class Merged(NamedTuple):
    """How far the predictions of a merged model are from the adapter's.

    Attributes:
        moved: the largest distance that a prediction of the compared prompts moved, in the unit of the labels; or with
            typed questions the probability of an option, given the options.
        tolerance: the largest that was allowed.
        reason: why they moved, in a sentence.
    """

    moved: float
    tolerance: float
    reason: str


@dataclass(frozen=True)
class Rounding:
    """The precision in which an adapter and the model merged from it compute, by which their predictions differ.

    Attributes:
        before: the dtype of the adapter's base.
        after: that of the merged weights.
        autocast: in which both compute products; None for the dtype of the weights.
        quantized: whether the adapter's base is.
    """

    before: torch.dtype
    after: torch.dtype
    autocast: torch.dtype | None
    quantized: bool

    def tolerance(self, span: float) -> float:
        """How far rounding may move a prediction, in the unit of its range.

        Args:
            span: the length of this range.
        """
        is_exact = not self.quantized and not {self.before, self.after, self.autocast} & set(_16_BIT)
        return span * (_TOLERANCE if is_exact else _TOLERANCE_16_BIT)

    @property
    def reason(self) -> str:
        """What makes the predictions differ, in a sentence."""
        if self.after in _16_BIT:
            return f"The sum of base and adapter is rounded to {_name(self.after)}, the dtype of the merged weights."
        if self.autocast in _16_BIT:
            return f"Products are computed in {_name(self.autocast)}, and the merged model rounds different products."
        if self.before in _16_BIT:
            return f"The adapter's model computes in {_name(self.before)}, the merged one in {_name(self.after)}."
        if self.quantized:
            return "The adapter's base is quantized, and the merged model is not."
        return f"Both compute in {_name(self.after)}, and the merged model adds in a different order."

    @property
    def cure(self) -> str:
        """What helps where the predictions differ by too much, in a sentence."""
        if self.after in _16_BIT:
            return "Merge with `dtype='float32'`, or allow more with `tolerance`."
        if self.autocast in _16_BIT:
            return "Merge with `autocast='float32'`, which the merged model keeps, or allow more with `tolerance`."
        return "Allow more with `tolerance`."


@dataclass(frozen=True)
class _Compared:
    """What is read of an adapter and of the model merged from it: predictions, or with typed questions probabilities.

    Attributes:
        rows: prompts, or rows of questions.
        asks_questions: whether they are rows of questions.
        span: the length of the range of what is read.
    """

    rows: Sequence[Any]
    asks_questions: bool
    span: float

    @classmethod
    def of(cls, saved: RaftConfig, prompts: Sequence[Any] | None) -> _Compared:
        """Those of the user, or a few in the form of those of training.

        Raises:
            ValueError: the user's cannot be asked.
        """
        if saved.asks_questions:
            return cls(question_probes(_TEXTS, saved.questions, prompts), True, 1.0)
        low, high = range_of_grid(saved.grid)
        return cls(_probes(saved) if prompts is None else prompts, False, high - low)

    @property
    def what(self) -> str:
        return "Probabilities of options" if self.asks_questions else "Predictions"

    def read(self, predictor: RegressionPredictor) -> np.ndarray:
        if self.asks_questions:
            return probabilities(predictor, self.rows)
        return predictor.predict(self.rows, show_progress=False)


def merge_and_save(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    autocast: str | torch.dtype | None = None,
    prompts: Sequence[Any] | None = None,
    tolerance: float | None = None,
    **model_kwargs: Any,
) -> Merged:
    """Merge an adapter into its base model, and save it as an ordinary model folder that predicts the same.

    A base that was quantized in training is dequantized first, so that the merged model is as the adapter knows it.
    That it is the base of training is known by the fingerprint in `raft_config.json`, see `base_fingerprint.py`; so
    the predictions before the merge, with which those after it are compared, are those of training.

    Args:
        source: folder or Hub repository of an adapter that `RegressionAwareTrainer` saved.
        target: a folder that does not exist yet, or is empty. It gets the model, its tokenizer, `raft_config.json`,
            the head where it has parameters, the calibration where it is valid, and a model card of its own.
        dtype: of the merged weights; by default that of training.
        autocast: the dtype in which both models compute products, which the merged one keeps; by default that of
            training. In "float32", a model of float32 weights predicts the same before and after, but for 1e-3.
        prompts: texts or chats on which the predictions are compared; of a folder of typed questions rows of `state`,
            with `questions` where these are not those of training. None for a few in the form of those of training;
            with your own you know more.
        tolerance: how far a prediction may move, in the unit of the labels, or with typed questions a probability; by
            default a thousandth of the range in float32, and a fiftieth where weights or products are in 16 bits or
            the base is quantized.
        model_kwargs: passed on to the model's `from_pretrained`, such as `device_map` or `token`.

    Returns:
        How far predictions moved at most, and why.

    Raises:
        ValueError: the source is no adapter of ours, or one that cannot be merged; its base model holds other weights
            than in training; the target holds files; or predictions moved further than the tolerance. Then nothing is
            left in the target.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{str(target)!r} holds files already. Merge into a new folder.")
    model_kwargs = with_dtype({**model_kwargs, "dtype": dtype})
    dtype = model_kwargs.pop("dtype")
    hub = hub_options(model_kwargs)
    check_there_is(str(source), hub)
    saved = RaftConfig.find(source, hub)
    if saved is None:
        raise ValueError(
            f"{str(source)!r} has no {RAFT_CONFIG_NAME}. Pass a folder that RegressionAwareTrainer.save_model wrote."
        )
    compared = _Compared.of(saved, prompts)
    before = RegressionPredictor.from_pretrained(source, autocast=autocast, **model_kwargs)
    expected = compared.read(before)
    calibrations, before_dtype, computed_in = _valid_calibrations(before), before.model.dtype, before._autocast
    # The memory may not be enough for a large model twice.
    del before
    is_new = not target.exists()
    try:
        after_dtype = _save_merged(source, target, saved, dtype, computed_in, **model_kwargs)
        of_a_folder = {name: value for name, value in model_kwargs.items() if name not in hub}
        loaded = RegressionPredictor.from_pretrained(target, **of_a_folder)
        moved = float(np.abs(compared.read(loaded) - expected).max())
        rounding = Rounding(before_dtype, after_dtype, computed_in, saved.quantization is not None)
        usual = rounding.tolerance(compared.span)
        allowed = usual if tolerance is None else tolerance
        if not moved <= allowed:
            raise ValueError(
                f"{compared.what} of the merged model differ from the adapter's by up to {moved:.3g}, more than the "
                f"tolerance of {allowed:.3g}. {rounding.reason} {rounding.cure} Nothing was kept."
            )
        if calibrations and moved > usual:
            warn(
                logger,
                f"The calibration was left out, since predictions changed by up to {moved:.3g}, and rounding explains "
                f"{usual:.3g}. Calibrate the merged model: `{' and '.join(map(_call_of, calibrations))}`.",
            )
        else:
            for calibration in calibrations:
                replace(calibration, settings=_settings_of(calibration, loaded)).save(target)
    except BaseException:
        _clear(target, is_new=is_new)
        raise
    return Merged(moved, allowed, rounding.reason)


def _probes(saved: RaftConfig) -> list[Any]:
    """Prompts with what those of training had in common, as far as it is known."""
    shape = saved.prompt_shape if saved.prompt_shape is not None else f"Review: {GAP} Rating:"
    turns: Any = [{"content": shape}] if isinstance(shape, str) else shape
    chats = [[{**turn, "content": turn["content"].replace(GAP, text)} for turn in turns] for text in _TEXTS]
    prompts: list[Any] = [chat[0]["content"] for chat in chats] if isinstance(shape, str) else chats
    # Numbers behind reasonings are compared behind some.
    return prompts if saved.score_prefix is None else [{"prompt": one, "reasoning": "Here is why."} for one in prompts]


def _valid_calibrations(predictor: RegressionPredictor) -> list[_AnyCalibration]:
    """Those of an adapter, of its numbers and of its answers, that were made for its weights and settings."""
    found: list[_AnyCalibration] = []
    for calibration in (predictor.calibration, predictor.question_calibration):
        if calibration is None:
            continue
        try:
            found.append(usable_calibration(calibration, _settings_of(calibration, predictor), _call_of(calibration)))
        except ValueError as error:
            warn(logger, f"The calibration beside the adapter was left out. {error}")
    return found


def _settings_of(calibration: _AnyCalibration, predictor: RegressionPredictor) -> dict[str, Any]:
    """What a calibration depends on, as it is in a predictor.

    Raises:
        ValueError: it is of numbers, and there is no grid.
    """
    if isinstance(calibration, QuestionCalibration):
        return predictor._question_settings()
    if predictor._readout is None:
        raise ValueError("It is of predicted numbers, and the adapter answers typed questions, without a grid.")
    return predictor._calibrated_settings(calibration.settings)


def _call_of(calibration: _AnyCalibration) -> str:
    return CALIBRATE if isinstance(calibration, QuestionCalibration) else "predictor.calibrate(prompts, labels)"


def _save_merged(
    source: str | Path,
    target: Path,
    saved: RaftConfig,
    dtype: str | torch.dtype | None,
    autocast: torch.dtype | None,
    **model_kwargs: Any,
) -> torch.dtype:
    """Write the merged model into a folder, with all that belongs to it but a calibration.

    Args:
        source, target, dtype, model_kwargs: as in `merge_and_save`.
        saved: the adapter's `raft_config.json`.
        autocast: in which the merged model is to compute products; None for the dtype of its weights.

    Returns:
        The dtype of the merged weights.

    Raises:
        ValueError: there is no adapter, or one that cannot be merged.
    """
    predictor = RegressionPredictor.from_pretrained(source, dtype=dtype, dequantize=True, **model_kwargs)
    if not isinstance(predictor.model, PeftModel):
        raise ValueError(f"{str(source)!r} holds a whole model and no adapter. There is nothing to merge.")
    merged = _merged(predictor.model, source)
    merged_dtype: torch.dtype = merged.dtype
    merged.save_pretrained(target)
    predictor.tokenizer.save_pretrained(target)
    config = replace(
        saved,
        adapter=False,
        quantization=None,
        # The path of a folder would mean nothing to a reader elsewhere.
        base_model=None if saved.base_is_folder else saved.base_model,
        base_is_folder=None,
        base_fingerprint=None,
        dtype=_name(merged_dtype),
        autocast=None if autocast is None else _name(autocast),
    )
    has_head = not saved.asks_questions and predictor.readout.has_parameters
    head = predictor.readout.head.state_dict() if has_head else {}
    save_beside_weights(target, config, head)
    hub = hub_options(model_kwargs)
    card, *pictures = (find_file(str(source), name, hub) for name in (CARD_NAME, *PICTURE_NAMES))
    if card is not None:
        text = merged_card(Path(card).read_text(encoding="utf-8"), target.resolve().name)
        (target / CARD_NAME).write_text(text, encoding="utf-8")
    for name, picture in zip(PICTURE_NAMES, pictures, strict=True):
        if picture is not None:
            shutil.copyfile(picture, target / name)
    return merged_dtype


def _clear(target: Path, *, is_new: bool) -> None:
    """Remove what was written into a folder; and the folder itself, where it was not there before."""
    if is_new:
        shutil.rmtree(target, ignore_errors=True)
        return
    for path in target.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _merged(model: PeftModel, source: str | Path) -> Any:
    """The base model with its adapter in its weights.

    Raises:
        ValueError: weights cannot say what the adapter does.
    """
    adapter = model.active_peft_config
    kind = PeftType(adapter.peft_type).value
    start = f"The adapter in {str(source)!r}, of the type {kind}, cannot be merged"
    cure = "Keep it as an adapter, which RegressionPredictor opens with its base model; or train LoRA, which merges."
    if adapter.is_prompt_learning or not hasattr(model.base_model, "merge_and_unload"):
        raise ValueError(f"{start}: it adds keys and values to the attention, and changes no weights. {cure}")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = getattr(head, "weight", None) is getattr(embedding, "weight", embedding)
    if is_tied and any(isinstance(one, LoraLayer) for one in (head, embedding)):
        raise ValueError(
            f"{start}: it changes the input embedding or the output matrix, and in this model they are one matrix, so "
            f"both would change. {cure} Leave these two out of its target_modules."
        )
    try:
        return model.merge_and_unload(safe_merge=True)
    # Each kind of adapter has its own way to say it.
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{start}: {str(error).rstrip('.')}. {cure}") from error
