"""`plan_memory`: how much memory training takes, and with which settings it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from raft_peft.forward.cpu_precision import cpu_multiplies_bf16
from raft_peft.methods.saved_folder import check_there_is
from raft_peft.planning.byte_sizes import parse_bytes
from raft_peft.planning.estimate import Estimator
from raft_peft.planning.plan import CUDA_CONTEXT, FRAGMENTATION, MemoryPlan
from raft_peft.planning.settings import StepSettings
from raft_peft.training.quantization import usual_dtype


def plan_memory(
    model: Any,
    gpu_memory: str | float | None = None,
    *,
    quantization: str | None = None,
    gradient_checkpointing: bool | None = None,
    batch_size: int | None = None,
    global_batch_size: int = 16,
    max_length: int = 512,
    r: int = 16,
    target_modules: str | Sequence[str] = "all-linear",
    optim: str = "adamw_torch_fused",
    dtype: str | None = None,
    bf16: bool | None = None,
    attn_implementation: str | None = None,
    device: str = "cuda",
    trust_remote_code: bool = False,
) -> MemoryPlan:
    """Plan the memory of fine-tuning with LoRA, from the model's config alone.

    No weights are loaded. One training step is run on tensors that have shapes but no memory, and the bytes in use are
    counted all along; so the peak follows the architecture's own code and the settings. Settings left open are chosen:
    the fastest which fit, that is without quantization rather than with NF4, without gradient checkpointing rather
    than with it, and then with as many rows in a forward pass as possible.

    ```python
    plan = plan_memory("google/gemma-2-9b-it", "24GB")
    print(plan)
    ```

    Args:
        model: name or folder of a language model, or its config.
        gpu_memory: what there is, as "24GB" or "24GiB"; a number is in GB. None where only the amount is asked for.
        quantization: none, nf4 or int8; None to choose among the first two (int8 is larger than NF4, and slower).
        gradient_checkpointing: None to choose.
        batch_size: rows in a forward pass; None to choose.
        global_batch_size: rows in an optimizer step; gradients are accumulated up to it.
        max_length: tokens in a row, of which every row is taken to have as many.
        r, target_modules: of LoRA.
        optim: of `TrainingArguments`: adamw_torch_fused, adamw_torch, adamw_8bit or paged_adamw_8bit.
        dtype: of the weights that are not quantized: by default bfloat16, and on the CPU float32 without NF4, or where
            it only emulates bf16.
        bf16: whether to train under bf16 autocast: by default as the trainer does, on a GPU, and on a CPU that
            multiplies in it.
        attn_implementation: of transformers; by default as the trainer does, the model's own, and eager on the CPU
            under bf16 autocast.
        device: cuda, or cpu for the memory of this machine.
        trust_remote_code: whether a model's own code may be run.

    Raises:
        ValueError: a setting or a model that cannot be planned.
    """
    memory = None if gpu_memory is None else parse_bytes(gpu_memory)
    name, config = _named_config(model, trust_remote_code)
    if not isinstance(global_batch_size, int) or global_batch_size < 1:
        raise ValueError(f"`global_batch_size={global_batch_size!r}` is not a positive whole number.")
    on_cpu = device == "cpu"
    bf16 = (not on_cpu or cpu_multiplies_bf16()) if bf16 is None else bf16
    if on_cpu and bf16 and attn_implementation is None:
        # The trainer takes it for a model that it opens by its name.
        attn_implementation = "eager"
    settings = StepSettings(
        quantization=quantization or "none",
        gradient_checkpointing=bool(gradient_checkpointing),
        batch_size=global_batch_size if batch_size is None else batch_size,
        accumulation=1,
        max_length=max_length,
        r=r,
        target_modules=target_modules if isinstance(target_modules, str) else tuple(target_modules),
        dtype=dtype or "bfloat16",
        bf16=bf16,
        optim=optim,
        attn_implementation=attn_implementation,
        device=device,
    )
    sizes = _halves(global_batch_size) if batch_size is None else [batch_size]
    estimator = Estimator(config)
    plans = [
        _with_largest_batch(
            estimator,
            name,
            memory,
            dataclasses.replace(
                settings,
                quantization=one,
                gradient_checkpointing=checkpointing,
                dtype=dtype or ("float32" if on_cpu and one != "nf4" else usual_dtype(quantized=True, on_cpu=on_cpu)),
            ),
            sizes,
            global_batch_size,
        )
        for one in (("none", "nf4") if quantization is None else (quantization,))
        for checkpointing in ((False, True) if gradient_checkpointing is None else (gradient_checkpointing,))
    ]
    chosen = next((plan for plan in plans if plan.fits), min(plans, key=lambda plan: plan.total))
    return dataclasses.replace(chosen, alternatives=tuple(plan for plan in plans if plan is not chosen))


def _with_largest_batch(
    estimator: Estimator, name: str, memory: int | None, settings: StepSettings, sizes: list[int], rows: int
) -> MemoryPlan:
    """The plan with the largest of the batch sizes which fits, or the smallest where none does."""
    held = estimator.held(settings)
    if memory is not None and held.weights + held.adapter + held.optimizer > memory:
        sizes = sizes[-1:]  # none fits, so that there is nothing to find out about the larger ones
    for size in sizes:
        each = dataclasses.replace(settings, batch_size=size, accumulation=max(1, -(-rows // size)))
        step = estimator.step(each)
        comes_and_goes = step.activations + step.gradients + step.logits
        plan = MemoryPlan(
            model=name,
            settings=each,
            **dataclasses.asdict(held),
            **dataclasses.asdict(step),
            allowance=0 if each.device == "cpu" else CUDA_CONTEXT + round(FRAGMENTATION * comes_and_goes),
            gpu_memory=memory,
        )
        if plan.fits:
            return plan
    return plan


def _halves(rows: int) -> list[int]:
    """Batch sizes that make up so many rows in whole forward passes: all of them, a half, a quarter and so on.

    >>> _halves(16), _halves(12), _halves(1)
    ([16, 8, 4, 2, 1], [12, 6, 3, 1], [1])
    """
    sizes = [rows]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes if sizes[-1] == 1 else [*sizes, 1]


def _named_config(model: Any, trust_remote_code: bool) -> tuple[str, Any]:
    if not isinstance(model, str):
        if not hasattr(model, "get_text_config"):
            raise ValueError(
                f"A {type(model).__name__} is not a model that can be planned for. Pass a name, a folder or a config "
                "of transformers."
            )
        return model.name_or_path or model.model_type, model
    check_there_is(model, {})
    try:
        return model, AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The config of {model!r} cannot be read ({str(error).strip().splitlines()[0]}). Pass the name of a model "
            "that can be reached, or a folder with a config.json."
        ) from error
