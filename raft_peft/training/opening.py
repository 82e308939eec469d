"""Models that are given to the trainer by their names, and what opening, adapters and TRL ask of each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DistributedType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, set_seed
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from trl.trainer.utils import create_model_from_path

from raft_peft.forward.attention import DENSE
from raft_peft.forward.model import base_model
from raft_peft.methods.pretrained import (
    config_of_adapter,
    open_adapter,
    open_language_model,
    open_tokenizer,
    with_dtype,
)
from raft_peft.methods.saved_folder import RaftConfig, check_there_is, find_file, hub_options
from raft_peft.methods.saving import check_one_model
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.quantization import dtype_beside


def open_by_name(
    name: str,
    processing_class: Any,
    args: RegressionAwareConfig,
    *,
    quantization_config: Any,
    peft_config: Any,
) -> tuple[Any, Any]:
    """A model to train, opened as `SFTTrainer` would, and its tokenizer or processor.

    Where the name is that of a saved adapter, the adapter is trained on, on its base model as it was before.

    Args:
        name: the folder or repository.
        processing_class: as given; None for that of the name.
        args: the settings, with `model_init_kwargs` among them.
        quantization_config, peft_config: as given to the trainer.

    Raises:
        ValueError: it is no language model, or an adapter that cannot be trained on like this.
        OSError: it is not found, or its base model is not.
    """
    options = init_kwargs_of(args, quantization_config)
    hub = hub_options(options)
    check_there_is(name, hub)
    is_adapter = find_file(name, ADAPTER_CONFIG_NAME, hub) is not None
    if processing_class is None:
        processing_class = processing_class_of(name, args)
    if quantization_config is not None:
        if "quantization_config" in options:
            raise ValueError("`quantization_config` is given twice, also in `model_init_kwargs`. Leave out one.")
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in (DistributedType.MULTI_GPU, DistributedType.DEEPSPEED):
        # Each process has a device of its own there, and puts the model on it later.
        options["device_map"] = None
    options.setdefault("trust_remote_code", args.trust_remote_code)
    set_seed(args.seed)
    if not is_adapter:
        return open_language_model(name, _create, **options), processing_class
    if peft_config is not None:
        raise ValueError(
            f"{name!r} holds an adapter, and `peft_config` asks for another one. Leave out `peft_config` to train on "
            "the saved adapter; for a new one, merge the saved one first with `merge_and_save(folder, new_folder)`."
        )
    saved = RaftConfig.find(name, hub)
    check_one_model(name, hub, saved)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    model = open_adapter(
        name, tokenizer, saved, _create, is_trainable=True, **_as_trained(options, saved, quantization_config)
    )
    return model, processing_class


def processing_class_of(name: str, args: RegressionAwareConfig) -> Any:
    """The tokenizer or processor of a model or an adapter given by its name, of the same revision."""
    hub = hub_options(args.model_init_kwargs or {})
    trust = {"trust_remote_code": args.trust_remote_code}
    if find_file(name, ADAPTER_CONFIG_NAME, hub) is None:
        return open_tokenizer(name, AutoProcessor, **trust, **hub)
    if find_file(name, TOKENIZER_CONFIG_FILE, hub) is not None:
        return open_tokenizer(name, **trust, **hub)
    adapter = config_of_adapter(name, RaftConfig.find(name, hub), **hub)
    return open_tokenizer(adapter.base_model_name_or_path, **trust, **{**hub, "revision": adapter.revision})


def _as_trained(options: Mapping[str, Any], saved: RaftConfig | None, quantization_config: Any) -> dict[str, Any]:
    """The options with which an adapter is opened as it was trained before, where they do not say otherwise."""
    if saved is None:
        return dict(options)
    found = dict(options)
    if saved.dtype is not None:
        found.setdefault("dtype", saved.dtype)
    if saved.attn_implementation in DENSE:
        found.setdefault("attn_implementation", saved.attn_implementation)
    if quantization_config is None and "quantization_config" not in found:
        found["quantization"] = saved.quantization
    return found


def _create(name: str, **options: Any) -> Any:
    config = AutoConfig.from_pretrained(
        name, trust_remote_code=options.get("trust_remote_code", False), **hub_options(options)
    )
    # TRL takes the class by its name out of the configuration, where there need not be any.
    architecture = None if config.architectures else AutoModelForCausalLM
    return create_model_from_path(name, architecture=architecture, **options)


def init_kwargs_of(args: RegressionAwareConfig, quantization_config: Any) -> dict[str, Any]:
    """How a model given by its name is loaded: as `model_init_kwargs` says, and by default as is best here."""
    options = with_dtype(args.model_init_kwargs or {})
    dtype = dtype_beside(quantization_config)
    if dtype is not None:
        options.setdefault("dtype", dtype)
    if args.bf16 and args.device.type == "cpu" and options.get("attn_implementation") is None:
        # Eager attention is the fastest in training there, by benchmarks/cpu_precision.py.
        options["attn_implementation"] = "eager"
    return options


@contextmanager
def output_shown_without_adapter(model: Any) -> Iterator[None]:
    """For the time of a `with` block, let a model name its output matrix itself, and not an adapter's layer around it.

    TRL refuses such a layer, since its own loss multiplies by the matrix alone and would not train the adapter. Here
    logits are those of the model's own forward, with the adapter.
    """
    base = base_model(model)
    own = base.get_output_embeddings

    def get_output_embeddings() -> Any:
        output = own()
        return output.get_base_layer() if isinstance(output, BaseTunerLayer) else output

    base.get_output_embeddings = get_output_embeddings
    try:
        yield
    finally:
        del base.get_output_embeddings
