"""Linear layers that hold no weights, and take the memory that bitsandbytes' quantized ones would take."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import MatmulLtState
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from raft_peft.training.quantization import usual_dtype

_BLOCK, _BLOCKS_OF_BLOCK = 64, 256  # NF4: a scale of 8 bits for so many weights, one of 32 bits for so many scales


def quantize(model: nn.Module, quantization: str, device: str) -> None:
    """Replace, in a model on the meta device, the linear layers that transformers would quantize.

    Args:
        model: changed in place.
        quantization: nf4, with double quantization and the dtype for computing of `qlora`, or int8.
        device: where it is to run; on the CPU, bitsandbytes computes int8 in another way.
    """
    dense = get_keys_to_not_convert(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and should_convert_module(name, dense):
            model.set_submodule(
                name, NF4Linear(module, device) if quantization == "nf4" else Int8Linear(module, device)
            )
    # What PEFT asks before it wraps quantized layers
    setattr(model, "is_loaded_in_4bit" if quantization == "nf4" else "is_loaded_in_8bit", True)


class NF4Linear(Linear4bit):
    """In the place of a linear layer in NF4; PEFT takes it for bitsandbytes' own."""

    def __init__(self, linear: nn.Linear, device: str):
        nn.Module.__init__(self)
        blocks = -(-linear.weight.numel() // _BLOCK)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.compute_dtype = getattr(torch, usual_dtype(quantized=True, on_cpu=device == "cpu"))
        self.dtype_before = linear.weight.dtype
        self.weight: Any = nn.Parameter(_meta(-(-linear.weight.numel() // 2), 1, dtype=torch.uint8), False)
        for name, value in {"compress_statistics": True, "quant_type": "nf4"}.items():
            setattr(self.weight, name, value)
        self.register_buffer("scales", _meta(blocks, dtype=torch.uint8))
        self.register_buffer("scales_of_scales", _meta(-(-blocks // _BLOCKS_OF_BLOCK), dtype=torch.float32))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        product: Any = _NF4Product.apply(rows.to(self.compute_dtype), self)
        return product.to(rows.dtype)

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        scales = torch.empty(self.scales.shape, dtype=torch.float32)
        dense = torch.empty(self.out_features, self.in_features, dtype=dtype)
        del scales
        return dense


class Int8Linear(Linear8bitLt):
    """In the place of a linear layer in int8; PEFT takes it for bitsandbytes' own."""

    def __init__(self, linear: nn.Linear, device: str):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.device, self.index, self.state = device, None, MatmulLtState()
        self.state.has_fp16_weights, self.state.threshold = False, 6.0
        self.weight: Any = nn.Parameter(_meta(*linear.weight.shape, dtype=torch.int8), False)
        self.register_buffer("scales", _meta(linear.out_features, dtype=torch.float32))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        product: Any = _Int8Product.apply(rows, self)
        return product

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=dtype)


class _NF4Product(torch.autograd.Function):
    """As `bitsandbytes.autograd.MatMul4Bit`: the dense weight is there while it is multiplied, both times."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layer: NF4Linear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(rows, layer.dense_weight(rows.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        return gradient @ ctx.layer.dense_weight(ctx.layer.dtype_before).to(gradient.dtype), None


class _Int8Product(torch.autograd.Function):
    """As `bitsandbytes.autograd.MatMul8bitLt`, and `MatMul8bitFp` on the CPU. Both keep their input."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
        ctx.layer, ctx.rows = layer, rows
        if layer.device == "cpu":
            return nn.functional.linear(rows, layer.dense_weight(rows.dtype), layer.bias)
        quantized = torch.empty_like(rows.to(torch.float16), dtype=torch.int8)
        sums = torch.empty(*quantized.shape[:-1], layer.out_features, dtype=torch.int32)
        return sums.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        return gradient.to(ctx.rows.dtype) @ ctx.layer.dense_weight(ctx.rows.dtype), None


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
