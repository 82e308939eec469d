"""A RAFT step that can be timed on any batch: forward and backward of LoRA, with rows padded or laid end to end."""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from raft_peft import NumberGrid
from raft_peft.methods import MethodSettings
from raft_peft.methods.readout import Readout


def raft_step(
    args: Any, tokenizer: Any, grid: NumberGrid, *, padding_free: bool, gradient_checkpointing: bool = False
) -> Callable[[dict[str, torch.Tensor]], None]:
    """A step on a batch, by the `model`, `attn_implementation`, `device` and `bf16` of a benchmark's arguments."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attn_implementation
    )
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).to(args.device)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
    readout = Readout(model, tokenizer, grid, MethodSettings(), grid_token_ids=None, padding_free=padding_free)

    def step(batch: dict[str, torch.Tensor]) -> None:
        batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bf16):
            output = readout.read_head(model, batch).output
        (readout.expectation(output) - 3).square().mean().backward()
        model.zero_grad()

    return step
