"""Saved models, opened: language models with all of their weights, and adapters on the base that they were trained on.

How the language model itself is opened is handed in, since training and prediction do it differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, TaskType
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.quantizers import AutoQuantizationConfig

from raft_peft.methods.adapter_inits import refuse_init_for_once
from raft_peft.methods.base_fingerprint import check_base
from raft_peft.methods.saved_folder import RaftConfig, find_file, hub_options

# Opens a model by its name with the options of `from_pretrained`, `output_loading_info` among them.
OpenModel = Callable[..., tuple[Any, Mapping[str, Any]]]

# One of these holds the tokens of a tokenizer.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def open_tokenizer(name: str, kind: Any = AutoTokenizer, **options: Any) -> Any:
    """The tokenizer of a folder or Hub repository, or its processor.

    Args:
        name: the folder or repository.
        kind: `AutoTokenizer` or `AutoProcessor`.
        options: of `from_pretrained`.

    Raises:
        ValueError: it holds no tokenizer, or one that cannot be opened.
    """
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        if not any(find_file(name, file, hub_options(options)) for file in VOCABULARIES):
            raise ValueError(
                f"{name!r} has no tokenizer: it holds none of {', '.join(VOCABULARIES)}. Copy the files of the "
                "tokenizer there, for an adapter those of its base model, or write them with "
                "`tokenizer.save_pretrained(folder)`."
            ) from error
        # AutoProcessor hides why a tokenizer cannot be opened.
        reason = error if kind is AutoTokenizer else _reason_against_tokenizer(name, options) or error
        raise ValueError(
            f"The tokenizer of {name!r} cannot be opened: {reason}\nSave or download its files again."
        ) from error


def _reason_against_tokenizer(name: str, options: Mapping[str, Any]) -> Exception | None:
    try:
        AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        return error
    return None


def with_dtype(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` with `torch_dtype`, as it was called before transformers 5, under its name `dtype`.

    Raises:
        ValueError: both are given, and differ.
    """
    renamed = {name: value for name, value in options.items() if name != "torch_dtype"}
    former = options.get("torch_dtype")
    if former is None:
        return renamed
    dtype = renamed.get("dtype")
    if dtype is not None and _dtype_name(dtype) != _dtype_name(former):
        raise ValueError(
            f"dtype={_dtype_name(dtype)} and torch_dtype={_dtype_name(former)} are two names of one option. Leave out "
            "`torch_dtype`, the old name."
        )
    return {**renamed, "dtype": former}


def _dtype_name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def open_language_model(name: str, open_model: OpenModel, **options: Any) -> Any:
    """A decoder with an output over its vocabulary, of which every weight is in its files.

    Args:
        name: the folder or repository.
        open_model: opens it.
        options: of `from_pretrained`.

    Raises:
        ValueError: it is another kind of model, some of its weights are saved nowhere and would be random ones, or its
            files lead out of its folder.
    """
    check_shards(name)
    unlike_config = ("quantization_config", "device_map", "dtype", "attn_implementation")
    config = AutoConfig.from_pretrained(
        name, **{option: value for option, value in options.items() if option not in unlike_config}
    )
    _check_architecture(name, config)
    model, loading = open_model(name, **options, output_loading_info=True)
    missing = sorted(loading["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{name!r} does not hold all weights of {type(model).__name__}: {', '.join(missing[:3])}{more} would be "
            "random numbers. Pass the folder of a whole language model, saved by AutoModelForCausalLM."
        )
    return model


def _check_architecture(name: str, config: Any) -> None:
    """Raise a ValueError where a model's configuration is not that of a decoder over a vocabulary."""
    saved_as = ", ".join(config.architectures or ()) or config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name!r} holds an encoder-decoder model ({saved_as}), and numbers are read from the next-token "
            "probabilities of a decoder. Use a model that AutoModelForCausalLM opens, such as Llama, Qwen or Gemma."
        )
    of_text = set()
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        for names in mapping.values():
            of_text |= {names} if isinstance(names, str) else set(names)
    # What transformers does not know is code of the model's own, which says itself what it is.
    known = [one for one in config.architectures or () if hasattr(transformers, one)]
    if known and not any(one in of_text or one.endswith("ForCausalLM") for one in known):
        raise ValueError(
            f"{name!r} holds a {saved_as}, which has no output over the vocabulary that predicts the next token. "
            "Numbers are read from next-token probabilities: pass a model that was saved as one for causal language "
            "modeling (AutoModelForCausalLM), not a classifier, a reward model, an encoder or a masked model."
        )


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


def open_adapter(
    name: str,
    tokenizer: Any,
    saved: RaftConfig | None,
    open_model: OpenModel,
    *,
    quantization: Mapping[str, Any] | None = None,
    dequantize: bool = False,
    is_trainable: bool = False,
    revision: str | None = None,
    **options: Any,
) -> Any:
    """The adapter on its base model, as `AutoPeftModelForCausalLM` opens it, with a row for every token.

    There, rows that the base model lacks are drawn from the mean and covariance of all others, at the cost of float32
    copies of the embedding and, for Gemma 2's on a CPU, most of a minute. The adapter replaces them.

    Args:
        name: the folder or repository of the adapter.
        tokenizer: that was saved with it; it may have tokens that the base model lacks.
        saved: its `raft_config.json`; None where it has none.
        open_model: opens the base model.
        quantization: of the base model, where its own folder does not hold it quantized already.
        dequantize: whether the base model is made dense again, with the values that quantization left.
        is_trainable: whether the adapter is to be trained on.
        revision: of the adapter.
        options: of `from_pretrained`.

    Raises:
        ValueError: the adapter is for another task, or cannot be opened as it was trained; or its base model is none,
            or is not what it was then.
        OSError: the base model is not found.
    """
    check_shards(name)
    peft_config = config_of_adapter(name, saved, revision=revision, **options)
    base = peft_config.base_model_name_or_path
    base_options = {**options, "revision": peft_config.revision}
    try:
        if quantization is not None:
            config = AutoConfig.from_pretrained(base, revision=peft_config.revision, **hub_options(options))
            if not hasattr(config, "quantization_config"):
                base_options["quantization_config"] = AutoQuantizationConfig.from_dict(dict(quantization))
        model = open_language_model(base, open_model, **base_options)
    except OSError as error:
        raise OSError(
            f"The base model {base!r} of the adapter in {name!r} could not be opened: {error}. Its folder or "
            f"Hub repository is read from {ADAPTER_CONFIG_NAME}, `base_model_name_or_path`."
        ) from error
    check_base(name, saved, base, {**hub_options(options), "revision": peft_config.revision})
    if dequantize and getattr(model, "is_quantized", False):
        model = model.dequantize()
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    places = options.get("device_map")
    # A map names the base model's parts, which have other names under the adapter.
    if isinstance(places, Mapping) and "" not in places:
        options["device_map"] = {f"base_model.model.{part}": place for part, place in places.items()}
    return PeftModelForCausalLM.from_pretrained(model, name, revision=revision, is_trainable=is_trainable, **options)


def add_adapter(model: PeftModel, name: str, tokenizer: Any, saved: RaftConfig | None, **hub: Any) -> None:
    """Open an adapter on a base model that holds others already, and make it the active one.

    Args:
        model: with the other adapters.
        name: the folder or repository of the adapter.
        tokenizer: that was saved with it.
        saved: its `raft_config.json`; None where it has none.
        hub: how the Hub is reached.

    Raises:
        ValueError: it was trained on another base model, in another precision, or with tokens of its own; or as
            `open_adapter`.
    """
    check_shards(name)
    peft_config = config_of_adapter(name, saved, **hub)
    base = peft_config.base_model_name_or_path
    host = model.active_peft_config
    if (base, peft_config.revision) != (host.base_model_name_or_path, host.revision):
        raise ValueError(
            f"The adapter in {name!r} was trained on {base!r}, and the model that is opened is "
            f"{host.base_model_name_or_path!r}. Open it on a model of its own."
        )
    check_base(name, saved, base, {**hub, "revision": peft_config.revision})
    quantized = getattr(model.config, "quantization_config", None) is not None
    if saved is not None and (saved.quantization is not None) != quantized:
        raise ValueError(
            f"The adapter in {name!r} was trained on a {'dense' if quantized else 'quantized'} base, and the one that "
            f"is opened is {'quantized' if quantized else 'dense'}. Open it on a model of its own."
        )
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ValueError(
            f"The adapter in {name!r} has tokens of its own, for which the model that is opened has no rows. Open it "
            "on a model of its own."
        )
    adapter = f"adapter_{len(model.peft_config)}"
    model.load_adapter(name, adapter, **hub)
    model.set_adapter(adapter)
    model.eval()


def config_of_adapter(name: str, saved: RaftConfig | None, **options: Any) -> PeftConfig:
    """The configuration of a saved adapter, with the name of its base model.

    Raises:
        ValueError, FileNotFoundError: as `open_adapter`.
    """
    peft_config = PeftConfig.from_pretrained(name, **options)
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
    refuse_init_for_once(peft_config, adapter=name)
    _check_base_exists(name, peft_config.base_model_name_or_path, saved)
    return peft_config


def _check_base_exists(name: str, base: str, saved: RaftConfig | None) -> None:
    """Raise a FileNotFoundError where a base model was a folder that is not there, so that the Hub is not asked."""
    was_folder = saved is not None and saved.base_is_folder and saved.base_model == base
    if Path(base).is_dir() or not (was_folder or base.startswith(("/", ".", "~")) or base.count("/") > 1):
        return
    seen_from = "" if Path(base).is_absolute() else f", seen from the working directory {str(Path.cwd())!r}"
    raise FileNotFoundError(
        f"The base model of the adapter in {name!r} is not where it was in training: there is no folder "
        f"{base!r}{seen_from}. Move it back, or write where it is now into {ADAPTER_CONFIG_NAME} of {name!r}, as "
        "`base_model_name_or_path`; a folder, or a Hub repository."
    )
