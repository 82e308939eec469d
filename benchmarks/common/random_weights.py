"""Models of any architecture with random weights, quantized while they are made: no hub, and never the dense model."""

import copy
from itertools import chain
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer


def random_quantized(
    config: PreTrainedConfig,
    auto_class: Any,
    quantization_config: BitsAndBytesConfig,
    *,
    device: str | torch.device = "cpu",
    attn_implementation: str = "eager",
) -> PreTrainedModel:
    """What `auto_class.from_pretrained(..., quantization_config=...)` gives, with random weights in place of a file.

    The model is laid out on the meta device, its linear layers are replaced by transformers' own quantizer, which
    also decides which ones stay dense, and the modules are filled one after the other by the architecture's own
    initialization: at any time, one linear layer at most is dense.

    Args:
        config: of the architecture; it is copied.
        auto_class: such as `AutoModelForCausalLM`.
        quantization_config: of 4 bits; what is not quantized has its compute dtype.
        device: where the weights are made, quantized and kept.
        attn_implementation: such as eager or sdpa.

    Returns:
        The model in evaluation mode, which transformers, PEFT and TRL take for one that was loaded quantized.

    Raises:
        ValueError: the quantization is not one of 4 bits by bitsandbytes.
        RuntimeError: a weight or buffer was left without values.
    """
    if not quantization_config.load_in_4bit:
        raise ValueError("Only 4-bit weights are made here. Set load_in_4bit=True.")
    quantizer = AutoHfQuantizer.from_config(quantization_config, pre_quantized=False)
    dtype = quantization_config.bnb_4bit_compute_dtype
    with torch.device("meta"):
        model = auto_class.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attn_implementation)
        quantizer.preprocess_model(model, device_map=None)
    tied = {name.rpartition(".")[0] for name in model.all_tied_weights_keys}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            _fill_quantized(model, name, module, quantizer, dtype, device)
        elif name not in tied:
            module.to_empty(device=device, recurse=False)
            model._init_weights(module)
    model.tie_weights()
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
    empty = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    if empty:
        raise RuntimeError(f"{', '.join(empty)} have no values.")
    return model.eval()


def _fill_quantized(
    model: PreTrainedModel,
    name: str,
    module: Linear4bit,
    quantizer: Any,
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Draw the weights of one linear layer and keep them in 4 bits alone; the dense ones end with this call."""
    dense = torch.nn.utils.skip_init(
        torch.nn.Linear,
        module.in_features,
        module.out_features,
        bias=module.bias is not None,
        dtype=dtype,
        device=device,
    )
    model._init_weights(dense)
    weight = f"{name}.weight"
    module.weight = quantizer.get_quantize_ops().convert({weight: dense.weight.data}, model=model)[weight]
    if dense.bias is not None:
        module.bias = dense.bias.requires_grad_(False)
