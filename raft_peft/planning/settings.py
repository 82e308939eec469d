"""The settings that decide how much memory a training step takes."""

from __future__ import annotations

from dataclasses import dataclass

QUANTIZATIONS = ("none", "nf4", "int8")
# Bytes of state for each trained number: two averages, in float32 or in 8 bits with a float32 for 256 numbers.
_OPTIMIZERS = {
    "adamw_torch_fused": 8.0,
    "adamw_torch": 8.0,
    "adamw_8bit": 2 + 8 / 256,
    "adamw_bnb_8bit": 2 + 8 / 256,
    "paged_adamw_8bit": 2 + 8 / 256,
}
_SMALLEST_IN_8_BITS = 4096  # bitsandbytes keeps the state of smaller tensors in float32


@dataclass(frozen=True)
class StepSettings:
    """What a training step is planned for.

    Attributes:
        quantization: of the base model's linear layers: none, nf4 or int8.
        gradient_checkpointing: whether each layer's activations are computed twice rather than kept.
        batch_size: rows in a forward pass, on each device.
        accumulation: forward passes in an optimizer step.
        max_length: tokens in a row; every row is taken to be as long.
        r, target_modules: of LoRA.
        dtype: of the weights that are not quantized: bfloat16, float16 or float32.
        bf16: whether the step runs under bf16 autocast.
        optim: name of the optimizer, as in `TrainingArguments`.
        attn_implementation: of transformers; None for the model's default.
        device: cuda, or cpu.
    """

    quantization: str
    gradient_checkpointing: bool
    batch_size: int
    accumulation: int
    max_length: int
    r: int
    target_modules: str | tuple[str, ...]
    dtype: str
    bf16: bool
    optim: str
    attn_implementation: str | None
    device: str

    def __post_init__(self) -> None:
        choices = {
            "quantization": QUANTIZATIONS,
            "dtype": ("bfloat16", "float16", "float32"),
            "optim": tuple(_OPTIMIZERS),
            "device": ("cuda", "cpu"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}={getattr(self, name)!r}` cannot be planned. Use {', '.join(allowed)}.")
        for name in ("batch_size", "accumulation", "max_length", "r"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"`{name}={getattr(self, name)!r}` is not a positive whole number.")

    def optimizer_bytes(self, count: int) -> int:
        """What the optimizer keeps of a trained tensor of so many numbers."""
        small = count < _SMALLEST_IN_8_BITS
        return round(count * (8.0 if small else _OPTIMIZERS[self.optim]))
