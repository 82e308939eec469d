"""The model of a folder or Hub repository, with its adapter, its head and the precision of its training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM, TaskType
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.quantizers import AutoQuantizationConfig

from raft_peft.forward.attention import DENSE
from raft_peft.methods.readout import Readout
from raft_peft.methods.saved_folder import HEAD_FILE, RaftConfig, find_file


def check_folder_exists(name: str) -> None:
    """Raise a FileNotFoundError where a name can only be that of a folder, and there is none."""
    if not Path(name).exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"There is no folder {name!r}. Pass the folder of a saved model, or a Hub repository.")


def open_as_trained(
    name: str,
    tokenizer: Any,
    hub: Mapping[str, Any],
    saved: RaftConfig | None,
    *,
    dtype: str | torch.dtype | None,
    quantization_config: Any,
    device_map: Any,
    **options: Any,
) -> Any:
    """The model of a folder or Hub repository, as it was in training where nothing else is asked for.

    Args:
        name, tokenizer, hub, options: as in `open_model`.
        saved: its `raft_config.json`; None where it has none.
        dtype: of the weights; None for that of training.
        quantization_config: None for that of training, False for none.
        device_map: None for all on the accelerator where there is one, else on the CPU.

    Raises:
        ValueError: as in `open_model`.
    """
    if saved is not None:
        dtype = saved.dtype if dtype is None else dtype
        # Another attention, such as a kernel of the Hub, may not be installed here.
        if saved.attn_implementation in DENSE:
            options.setdefault("attn_implementation", saved.attn_implementation)
        if quantization_config is None:
            options["quantization"] = saved.quantization
    if dtype is not None:
        options["dtype"] = dtype
    if quantization_config:
        options["quantization_config"] = quantization_config
    if device_map is None and torch.accelerator.is_available():
        device_map = {"": torch.accelerator.current_accelerator()}
    if device_map is not None:
        options["device_map"] = device_map
    return open_model(name, tokenizer, hub, **options)


def load_head(readout: Readout, name: str, hub: Mapping[str, Any]) -> None:
    """Load the parameters of a readout's head from a folder or Hub repository.

    Raises:
        ValueError: it has none, or they do not fit the head.
    """
    path = find_file(name, HEAD_FILE, hub)
    if path is None:
        raise ValueError(
            f"{name!r} has no {HEAD_FILE}, and the head of method {readout.settings.method!r} has parameters. Load a "
            "folder that RegressionAwareTrainer.save_model wrote with it, or use method='rail'."
        )
    readout.load_head(path)


def open_model(
    name: str,
    tokenizer: Any,
    hub: Mapping[str, Any],
    *,
    quantization: Mapping[str, Any] | None = None,
    dequantize: bool = False,
    **options: Any,
) -> Any:
    """The model of a folder or Hub repository.

    Args:
        name: the folder or repository.
        tokenizer: of the model; one that was saved with an adapter may have tokens that the base model lacks.
        hub: how the Hub is reached: `revision`, `token` and so on.
        quantization: of the model under an adapter, where its own folder does not hold it quantized already.
        dequantize: whether the model under an adapter is made dense again, with the values that quantization left.
        options: of `from_pretrained`, those of `hub` among them.

    Raises:
        ValueError: the adapter is for another task.
    """
    check_shards(name)
    if find_file(name, ADAPTER_CONFIG_NAME, hub) is None:
        return _from_pretrained(name, **options)
    return _open_adapter(name, tokenizer, quantization, dequantize, **options)


def _from_pretrained(pretrained_model_name_or_path: str, **options: Any) -> Any:
    """A language model, or one that also reads images, where its architecture has no class for text alone."""
    try:
        return AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        return AutoModelForImageTextToText.from_pretrained(pretrained_model_name_or_path, **options)


def check_shards(folder: str | Path) -> None:
    """Raise a ValueError where the list of a folder's weights leads out of it."""
    for index in Path(folder).glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{index} is not a list of weights: {error!r}. Save or download the model again."
            ) from None
        for shard in shards:
            if not isinstance(shard, str) or PurePath(shard).name != shard:
                raise ValueError(
                    f"{index} takes weights from {shard!r}, outside its folder. Such a model is not opened."
                )


def _open_adapter(
    name: str,
    tokenizer: Any,
    quantization: Mapping[str, Any] | None,
    dequantize: bool,
    revision: str | None = None,
    **options: Any,
) -> Any:
    """The adapter on its base model, as `AutoPeftModelForCausalLM` opens it, with a row for every token.

    There, rows that the base model lacks are drawn from the mean and covariance of all others, at the cost of float32
    copies of the embedding and, for Gemma 2's on a CPU, most of a minute. The adapter replaces them.

    Raises:
        ValueError: the adapter is for another task.
    """
    peft_config = PeftConfig.from_pretrained(name, revision=revision, **options)
    if peft_config.task_type not in (None, TaskType.CAUSAL_LM):
        raise ValueError(
            f"The adapter in {name!r} is for the task {peft_config.task_type}, and has no next-token probabilities. "
            "Load one of the task CAUSAL_LM."
        )
    if not peft_config.base_model_name_or_path:
        raise ValueError(
            f"The adapter in {name!r} does not say which model it is for, since it was trained on one without a name. "
            f"Write the model's name or folder into its {ADAPTER_CONFIG_NAME}, as `base_model_name_or_path`."
        )
    base = {"pretrained_model_name_or_path": peft_config.base_model_name_or_path, "revision": peft_config.revision}
    base_options = dict(options)
    if quantization is not None and not hasattr(AutoConfig.from_pretrained(**base, **options), "quantization_config"):
        base_options["quantization_config"] = AutoQuantizationConfig.from_dict(dict(quantization))
    check_shards(peft_config.base_model_name_or_path)
    model = _from_pretrained(**base, **base_options)
    if dequantize and getattr(model, "is_quantized", False):
        model = model.dequantize()
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    places = options.get("device_map")
    # A map names the base model's parts, which have other names under the adapter.
    if isinstance(places, Mapping) and "" not in places:
        options["device_map"] = {f"base_model.model.{part}": place for part, place in places.items()}
    return PeftModelForCausalLM.from_pretrained(model, name, revision=revision, **options)
