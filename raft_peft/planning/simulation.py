"""One training step of a model without weights, and the memory that it would take."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.model import check_final_logits
from raft_peft.losses.squared_error import squared_error
from raft_peft.planning.live_bytes import LiveBytes
from raft_peft.planning.settings import StepSettings

GRID = 5  # numbers, of one token each; more of them do not change the memory


@dataclass(frozen=True)
class Held:
    """What is in memory all along, in bytes.

    Attributes:
        weights: of the base model, quantized or not, with its buffers.
        adapter: its trained weights.
        optimizer: the optimizer's state.
    """

    weights: int
    adapter: int
    optimizer: int


class Skeleton:
    """A model made from its config alone, with an adapter: shapes and dtypes, no weights.

    Args:
        config: of a decoder in transformers.
        settings: its `batch_size` and `accumulation` have no part in it.
    """

    def __init__(self, config: Any, settings: StepSettings):
        self.settings = settings
        with _quietly():
            model = _with_adapter(config, settings)
            self._vocabulary = model.get_output_embeddings().weight.shape[0]
            self._fake = FakeTensorMode()
            with self._fake:
                _give_sizes(model)
            self._model = model.train()

    def held(self) -> Held:
        """What is in memory all along."""
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        return Held(
            weights=_bytes([tensor for tensor in self._tensors() if not tensor.requires_grad]),
            adapter=_bytes(trained),
            optimizer=sum(self.settings.optimizer_bytes(parameter.numel()) for parameter in trained),
        )

    def step(self, batch_size: int, *, padded: bool = True) -> np.ndarray:
        """The bytes in use beside what is held all along, in the course of a forward and backward pass.

        Args:
            batch_size: rows, all as long as `max_length`.
            padded: whether rows are shorter than others, so that attention needs a mask of its own for each.

        Returns:
            Of shape (moments, 3): all bytes, those of the adapter's gradients, those of logits.
        """
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        with _quietly(), _no_collection(), _asked_as_on(self.settings.device), self._fake:
            ids = torch.zeros(batch_size, self.settings.max_length, dtype=torch.long)
            tokens = torch.zeros(batch_size, GRID, dtype=torch.long)
            values, labels = torch.zeros(GRID), torch.zeros(batch_size)
            live = LiveBytes(
                [*self._tensors(), ids, tokens, values, labels], lambda t: t.shape[-1:] == (self._vocabulary,)
            )
            with live, contextlib.nullcontext() if padded else _without_mask(self._model):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
                    final = read_final_position(self._model, ids, torch.ones_like(ids))
                    prediction = (final.distribution(tokens, values).probs * values).sum(-1)
                squared_error(prediction, labels).mean().backward()
            gradients = live.timeline_of([parameter.grad for parameter in trained if parameter.grad is not None])
            moments = np.stack([live.timeline(), gradients, live.timeline(watched=True)], axis=1)
            for parameter in trained:
                parameter.grad = None
        return moments

    def _tensors(self) -> list[torch.Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]


def _with_adapter(config: Any, settings: StepSettings) -> Any:
    """The model as it is trained, on the meta device."""
    model = base_skeleton(config, settings)
    targets = settings.target_modules
    with torch.device("meta"):
        if settings.quantization != "none":
            from raft_peft.planning.stand_ins import quantize

            quantize(model, settings.quantization, settings.device)
        lora = LoraConfig(
            r=settings.r,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    check_final_logits(model)
    if settings.gradient_checkpointing:
        # The state of the random numbers would be kept too: a few KB, and a fake one cannot be set
        options = {"use_reentrant": False, "preserve_rng_state": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.enable_input_require_grads()
    return model


def base_skeleton(config: Any, settings: StepSettings) -> Any:
    """The base model on the meta device.

    Raises:
        ValueError: transformers has no decoder for this config.
    """
    options = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype), **options)


@contextlib.contextmanager
def _asked_as_on(device: str) -> Iterator[None]:
    """Let the fake tensors' autocast, the CPU's, stand for CUDA's where code asks for that of no device.

    PEFT asks so, and casts the input of its layers to float32 where it is told no.
    """
    enabled = torch.is_autocast_enabled

    def asked(device_type: str | None = None) -> bool:
        return enabled("cpu" if device_type is None else device_type)

    if device == "cuda":
        torch.is_autocast_enabled = asked
    try:
        yield
    finally:
        torch.is_autocast_enabled = enabled


@contextlib.contextmanager
def _without_mask(model: nn.Module) -> Iterator[None]:
    """As transformers does where no row is padded, which fake tensors cannot tell."""

    def drop(_: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        return arguments, {**keywords, "attention_mask": None}

    handle = model.register_forward_pre_hook(drop, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _give_sizes(model: nn.Module) -> None:
    """Replace the tensors of the meta device with fake ones of the CPU; those that are shared stay shared.

    The fake tensors are on the CPU whatever the device that is planned for, so that no driver is needed.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(_like(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like(buffer)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _bytes(tensors: list[Any]) -> int:
    return sum({id(one.untyped_storage()): one.untyped_storage().nbytes() for one in tensors}.values())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Tensors go when nothing refers to them, never at a moment that the collector chooses."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
