"""What a model is asked, and what comes back: its logits at few positions. The model stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from accelerate.utils import is_compiled_module

from raft_peft.forward.adapter_kinds import check_adapters
from raft_peft.forward.layouts import Sequences, positions_of
from raft_peft.forward.lm_head import logits_of_few_positions

# What bitsandbytes' Linear4bit asks before it packs its weights.
_PACKS = "support_avx512bf16_for_cpu"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def run(
    model: Any, sequences: Sequences, *, hidden_states: bool = False, **kwargs: Any
) -> tuple[Any, torch.Tensor | None]:
    """Run the model's own forward, with the logits of few positions alone.

    Whatever the architecture does behind its output matrix (soft-capping, scaling) is done, since its own forward does
    it. The forward is that of a view: a model of the same modules, but for the output matrix, whose product is taken
    as `lm_head.py` says.

    Args:
        model: the model, without a wrapper for distributed training.
        sequences: what it reads, and the positions whose logits are needed.
        hidden_states: whether to keep the output embeddings of all positions.
        kwargs: passed on to the forward.

    Returns:
        What the model returned, with `logits` of shape (sequences, kept positions, vocabulary), and the output
        embeddings of shape (sequences, length, hidden), None where they were not asked for.
    """
    inputs = {
        "input_ids": sequences.input_ids,
        "attention_mask": sequences.attention_mask,
        "logits_to_keep": sequences.keep,
        **sequences.options,
        **kwargs,
    }
    parameters = forward_parameters(model)
    if "position_ids" in parameters:
        mask = sequences.attention_mask
        inputs["position_ids"] = sequences.position_ids
        if sequences.position_ids is None and isinstance(mask, torch.Tensor):
            inputs["position_ids"] = positions_of(mask)
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    kept: list[torch.Tensor] = []
    outputs = _view(model, kept.append if hidden_states else None)(**inputs)
    return outputs, kept[0] if kept else None


def _view(model: Any, keep: Callable[[torch.Tensor], None] | None) -> Any:
    """The model with another product at its output matrix, and with its output embeddings shown to `keep`."""
    # What is compiled are the modules themselves: it would be compiled again for every view.
    if keep is None and (torch.compiler.is_compiling() or is_compiled_module(model)):
        return model
    # A compiled model does not call the modules that stand in its view, and shows no embeddings.
    model = getattr(model, "_orig_mod", model)
    head = model.get_output_embeddings()
    parts = {head: copied(head, forward=partial(logits_of_few_positions, head))}
    if keep is not None:
        backbone = base_model(model).get_decoder()
        kept = copied(backbone)
        kept.forward = partial(_shown, kept.forward, keep)
        parts[backbone] = kept
    return with_parts(model, parts)


def _shown(forward: Callable[..., Any], keep: Callable[[torch.Tensor], None], *args: Any, **kwargs: Any) -> Any:
    output = forward(*args, **kwargs)
    keep(output[0])
    return output


def with_parts(model: Any, parts: Mapping[Any, Any], **attributes: Any) -> Any:
    """A model with some modules in the place of others, that shares all else with the given one.

    Only the modules that lead to those are copied, so that it takes microseconds, and that what is done to the given
    model (other weights, another adapter, another device) is done to the next view of it.

    Args:
        model: stays as it is.
        parts: the modules to replace, each with the one that takes its place.
        attributes: those that the view of the model itself has of its own.
    """
    parents = _parents(model, set(parts))
    copies: dict[Any, Any] = {}
    for module, part in parts.items():
        while module is not model:
            parent, name = parents[module]
            if parent not in copies:
                copies[parent] = copied(parent)
            copies[parent]._modules[name] = part
            module, part = parent, copies[parent]
    copies[model].__dict__.update(attributes)
    return copies[model]


def _parents(model: Any, wanted: set[Any]) -> dict[Any, tuple[Any, str]]:
    """The parent of each module, and its name there, as far as the wanted ones are looked for: level by level."""
    parents: dict[Any, tuple[Any, str]] = {}
    level = [model]
    while level and wanted:
        below = []
        for parent in level:
            for name, module in parent._modules.items():
                if module is not None and module not in parents:
                    parents[module] = (parent, name)
                    below.append(module)
        wanted = wanted - parents.keys()
        level = below
    return parents


def copied(module: Any, **attributes: Any) -> Any:
    """A module that shares its parts and tensors with the given one, and has some attributes of its own."""
    # Not `copy.copy`, which calls the constructor of a module that FSDP shards.
    copy = object.__new__(type(module))
    copy.__dict__.update({name: _rebound(value, module, copy) for name, value in vars(module).items()})
    copy.__dict__["_modules"] = dict(module._modules)
    copy.__dict__.update(attributes)
    return copy


def _rebound(value: Any, module: Any, copy: Any) -> Any:
    """For the copy, a method that an object was given for its own, as accelerate and TRL give a forward to a model."""
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(_rebound(value.__func__, module, copy), copy)
    if isinstance(value, partial) and value.args[:1] == (module,):
        return partial(value.func, copy, *value.args[1:], **value.keywords)
    # TRL's forward calls the one that was there before, which it holds on to.
    closure = getattr(value, "__closure__", None) or ()
    if isinstance(value, FunctionType) and any(_is_method_of(module, cell) for cell in closure):
        cells = tuple(
            CellType(MethodType(cell.cell_contents.__func__, copy)) if _is_method_of(module, cell) else cell
            for cell in closure
        )
        made = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
        made.__kwdefaults__ = value.__kwdefaults__
        return made
    return value


def _is_method_of(module: Any, cell: CellType) -> bool:
    return getattr(cell.cell_contents, "__self__", None) is module and isinstance(cell.cell_contents, MethodType)


def attach_reading(model: Any) -> None:
    """Let the model's forward carry out a reading, where it is given one by `read_inside`.

    DDP, FSDP and ZeRO must see the parameters of a head used inside the forward that they wrap. Called once, when a
    trainer is made; a forward without a reading is the model's own as before.
    """
    # Not `hasattr`, which asks the model under an adapter too.
    if "_own_forward" not in vars(model):
        model._own_forward = model.forward
        model.forward = MethodType(_own_forward_or_reading, model)


def read_inside(wrapper: Any, reading: Callable[[Any], Any]) -> Any:
    """What a reading makes of the model, carried out inside the forward of the wrapper around it.

    Args:
        wrapper: of a model that `attach_reading` was called with, or that model itself.
        reading: takes the model, and gives tensors or a dict of them.
    """
    return wrapper(reading=reading)


def _own_forward_or_reading(model: Any, *args: Any, reading: Callable[[Any], Any] | None = None, **kwargs: Any) -> Any:
    if reading is None:
        return model._own_forward(*args, **kwargs)
    if torch.compiler.is_compiling():
        return reading(model)
    inside = copied(model)
    inside.forward = inside._own_forward
    # The hooks of the model, FSDP's among them, are at work around this call already.
    inside.__dict__.update({name: type(getattr(model, name))() for name in _HOOKS})
    return reading(inside)


def check_final_logits(model: Any) -> None:
    """Refuse a model that cannot give the logits of one position alone.

    Raises:
        ValueError: the model has no output over a vocabulary, its forward takes no `logits_to_keep`, or its adapter
            puts virtual tokens before the row.
    """
    check_adapters(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(base_model(model)).__name__} is an encoder-decoder model, and RAFT reads the probabilities of the "
            "token that follows a prompt. Use a decoder, such as those that AutoModelForCausalLM opens."
        )
    if output_embeddings(model) is None:
        raise ValueError(
            f"{type(base_model(model)).__name__} has no output over the vocabulary. RAFT reads the probabilities of "
            "number tokens: load the model with AutoModelForCausalLM."
        )
    if "logits_to_keep" not in forward_parameters(model):
        raise ValueError(
            f"{type(base_model(model)).__name__}.forward takes no `logits_to_keep`, so it would build the logits of "
            "every position. Use a decoder whose forward takes it, as those of transformers do."
        )


def output_embeddings(model: Any) -> Any:
    """The model's output over its vocabulary; None where it has none, as a classifier."""
    try:
        return model.get_output_embeddings()
    # Some architectures have no such method, or ask for what only their language models have.
    except (AttributeError, NotImplementedError):
        return None


def base_model(model: Any) -> Any:
    """The model under an adapter, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(embeddings: Any) -> torch.device:
    """Where the input or output embeddings run, also where they wait on disk or in the CPU's memory until they do."""
    device = embeddings.weight.device
    return device if device.type != "meta" else torch.device(embeddings._hf_hook.execution_device)


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """What the forward of the model under any adapter takes, by name."""
    base = base_model(getattr(model, "_orig_mod", model))
    return inspect.signature(type(base).forward).parameters


def cache_argument(model: Any) -> str:
    """The name under which the model's forward takes and gives its keys and values."""
    # It was renamed in transformers 5: the old name warns, and goes with 5.40.
    return "cache" if "cache" in forward_parameters(model) else "past_key_values"


def keep_4bit_weights_as_they_are(model: Any) -> None:
    """Keep bitsandbytes from packing the 4-bit weights of a model for inference.

    On CPUs with bf16 instructions it does so at the first evaluation, for good. What is packed has coarser scales, and
    passes no gradients on: training would go on, silently, with the few that do not go through it.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)


def check_not_packed(model: Any) -> None:
    """Refuse to train on 4-bit weights that bitsandbytes has packed for inference.

    Raises:
        ValueError: some are.
    """
    for name, module in model.named_modules():
        if hasattr(module, _PACKS) and getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                f"The 4-bit weights of {name} were packed for inference when the model was run, and pass on no "
                "gradients. Load the model afresh, and evaluate it with the trainer."
            )
