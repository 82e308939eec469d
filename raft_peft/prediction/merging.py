"""An adapter and its base model as one ordinary model, for servers and libraries that know of no adapters."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer

from raft_peft.methods.pretrained import with_dtype
from raft_peft.methods.saved_folder import (
    CARD_NAME,
    PICTURE_NAME,
    RAFT_CONFIG_NAME,
    RaftConfig,
    find_file,
    hub_options,
    save_head,
)
from raft_peft.prediction.predictor import RegressionPredictor

# Any text does, since what merging changes in a model it changes for every prompt.
_PROBES = tuple(
    f"Review: {text} Rating:"
    for text in ("It broke on day two.", "Best purchase ever.", "Does what it says, no more.", "Late, but kind.")
)
# The share of the grid's range by which rounding may move a prediction, by the dtype of the weights.
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_16_BIT = 2e-2


def merge_and_save(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    prompts: Sequence[Any] = _PROBES,
    tolerance: float | None = None,
    **model_kwargs: Any,
) -> float:
    """Merge an adapter into its base model, and save it as an ordinary model folder that predicts the same.

    A base that was quantized in training is dequantized first, so that the merged model is as the adapter knows it.
    That it is the base of training is known by the fingerprint in `raft_config.json`, see `base_fingerprint.py`; so
    the predictions before the merge, with which those after it are compared, are those of training.

    Args:
        source: folder or Hub repository of an adapter that `RegressionAwareTrainer` saved.
        target: a folder that does not exist yet, or is empty. It gets the model, its tokenizer, `raft_config.json`,
            the head where it has parameters, and the model card.
        dtype: of the merged weights; by default that of training.
        prompts: texts or chats on which the predictions are compared.
        tolerance: how far a prediction may move, in the unit of the labels; by default a thousandth of the grid's
            range in float32, and a fiftieth in 16 bits, whose rounding moves it.
        model_kwargs: passed on to the model's `from_pretrained`, such as `device_map` or `token`.

    Returns:
        The largest distance that a prediction moved, in the unit of the labels.

    Raises:
        ValueError: the source is no adapter of ours, or one that cannot be merged; its base model holds other weights
            than in training; the target holds files; or predictions moved further than the tolerance, in which case
            nothing is left in the target.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{str(target)!r} holds files already. Merge into a new folder.")
    model_kwargs = with_dtype({**model_kwargs, "dtype": dtype})
    dtype = model_kwargs.pop("dtype")
    hub = hub_options(model_kwargs)
    saved = RaftConfig.find(source, hub)
    if saved is None:
        raise ValueError(
            f"{str(source)!r} has no {RAFT_CONFIG_NAME}. Pass a folder that RegressionAwareTrainer.save_model wrote."
        )
    before = RegressionPredictor.from_pretrained(source, **model_kwargs).predict(prompts, show_progress=False)

    predictor = RegressionPredictor.from_pretrained(source, dtype=dtype, dequantize=True, **model_kwargs)
    if not isinstance(predictor.model, PeftModel):
        raise ValueError(f"{str(source)!r} holds a whole model and no adapter. There is nothing to merge.")
    merged = _merged(predictor.model, source)
    try:
        merged.save_pretrained(target)
        predictor.tokenizer.save_pretrained(target)
        saved_dtype = str(merged.dtype).removeprefix("torch.")
        whole: dict[str, Any] = {
            "adapter": False,
            "quantization": None,
            "base_is_folder": None,
            "base_fingerprint": None,
        }
        dataclasses.replace(saved, dtype=saved_dtype, **whole).save(target)
        if predictor.readout.has_parameters:
            save_head(predictor.readout.head.state_dict(), target)
        for name in (CARD_NAME, PICTURE_NAME):
            path = find_file(str(source), name, hub)
            if path is not None:
                shutil.copy(path, target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    if tolerance is None:
        span = max(predictor.grid.values) - min(predictor.grid.values)
        tolerance = span * _TOLERANCE.get(merged.dtype, _TOLERANCE_16_BIT)
    # The memory may not be enough for a large model twice.
    del merged, predictor
    of_a_folder = {name: value for name, value in model_kwargs.items() if name not in hub}
    loaded = RegressionPredictor.from_pretrained(target, **of_a_folder)
    moved = float(np.abs(loaded.predict(prompts, show_progress=False) - before).max())
    if not moved <= tolerance:
        shutil.rmtree(target, ignore_errors=True)
        raise ValueError(
            f"Predictions of the merged model differ from the adapter's by up to {moved:.3g}, more than the tolerance "
            f"of {tolerance:.3g}. Merge with dtype='float32', or allow more with `tolerance`. Nothing was kept."
        )
    return moved


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
            f"{start}: it changes the input embedding or the output matrix, and in this model they are one matrix, "
            f"which would change in both places. {cure} Leave these two out of its target_modules."
        )
    try:
        return model.merge_and_unload(safe_merge=True)
    # Each kind of adapter has its own way to say it.
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{start}: {str(error).rstrip('.')}. {cure}") from error
