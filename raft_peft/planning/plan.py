"""A plan of the memory of training: amounts, settings, and both as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raft_peft.planning.byte_sizes import format_bytes
from raft_peft.planning.settings import StepSettings

CUDA_CONTEXT = 800_000_000  # assumed: CUDA's context, the kernels, cuBLAS' workspaces
FRAGMENTATION = 0.05  # assumed: of what comes and goes in a step, lost between the allocator's blocks
_WEIGHTS = {
    "none": "{dtype}",
    "nf4": "NF4 with double quantization, the rest {dtype}",
    "int8": "int8, the rest {dtype}",
}


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of training with some settings, in bytes, at the peak of a step.

    Attributes:
        model: name or folder.
        settings: what it is planned for.
        weights: of the base model.
        adapter: the weights of LoRA, in float32.
        gradients: of the adapter.
        optimizer: its state.
        activations: what the backward pass needs, and what comes and goes.
        logits: of the final positions, with their gradients.
        allowance: assumed, on a GPU: what is in no tensor.
        gpu_memory: what there is; None where it is not said.
        alternatives: plans with other settings that were looked at.
    """

    model: str
    settings: StepSettings
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    allowance: int
    gpu_memory: int | None = None
    alternatives: tuple[MemoryPlan, ...] = ()

    @property
    def total(self) -> int:
        """The peak of the memory, with the allowance."""
        parts = (self.weights, self.adapter, self.gradients, self.optimizer, self.activations, self.logits)
        return sum(parts) + self.allowance

    @property
    def fits(self) -> bool:
        """Whether there is as much."""
        return self.gpu_memory is None or self.total <= self.gpu_memory

    def __str__(self) -> str:
        parts = [self._headline(), self._parts()]
        if self.alternatives:
            parts.append(self._comparison())
        if self.fits:
            parts.append(self.snippet())
        return "\n\n".join(parts)

    def _headline(self) -> str:
        settings, total = self.settings, format_bytes(self.total)
        what = f"{self.model}, {settings.batch_size} x {settings.max_length} tokens a forward pass"
        if self.gpu_memory is None:
            return f"{what}: {total}"
        if self.fits:
            return f"{what}: {total} of {format_bytes(self.gpu_memory)}, it fits"
        missing = format_bytes(self.total - self.gpu_memory)
        return (
            f"{what}: {total}, which does not fit in {format_bytes(self.gpu_memory)}: {missing} are missing. Of all "
            "settings that were tried, these need the least. Lower `max_length`, or take another model or device."
        )

    def _parts(self) -> str:
        settings = self.settings
        rows = [
            ("weights", self.weights, _WEIGHTS[settings.quantization].format(dtype=settings.dtype)),
            ("adapter", self.adapter, f"LoRA, r={settings.r}, float32"),
            ("gradients", self.gradients, "of the adapter"),
            ("optimizer", self.optimizer, settings.optim),
            ("activations", self.activations, f"gradient checkpointing {_on(settings.gradient_checkpointing)}"),
            ("logits", self.logits, f"of {settings.batch_size} final positions"),
        ]
        if self.allowance:
            assumed = f"{format_bytes(CUDA_CONTEXT)} for CUDA, {FRAGMENTATION:.0%} of a step's tensors"
            rows.append(("allowance", self.allowance, f"assumed: {assumed}"))
        rows.append(("total", self.total, ""))
        return "\n".join(f"  {name:<12}{format_bytes(size):>10}  {note}".rstrip() for name, size, note in rows)

    def _comparison(self) -> str:
        lines = [f"  {'weights':<10}{'checkpointing':<15}{'batch x steps':<15}{'memory':>10}"]
        for plan in (self, *self.alternatives):
            settings = plan.settings
            batches = f"{settings.batch_size} x {settings.accumulation}"
            weights = settings.dtype if settings.quantization == "none" else settings.quantization
            line = (
                f"  {weights:<10}{_on(settings.gradient_checkpointing):<15}{batches:<15}{format_bytes(plan.total):>10}"
            )
            lines.append(line + ("" if plan.fits else "  does not fit") + ("  <- this plan" if plan is self else ""))
        return "\n".join(lines)

    def snippet(self) -> str:
        """Python that trains with these settings."""
        settings = self.settings
        lora = (
            f"LoraConfig(r={settings.r}, lora_alpha={2 * settings.r}, target_modules={_code(settings.target_modules)})"
        )
        adapter, modules = f"    peft_config={lora},", ["from peft import LoraConfig"]
        if settings.quantization == "nf4":
            options = [] if settings.r == 16 else [f"r={settings.r}"]
            if settings.target_modules != "all-linear":
                options.append(f"target_modules={_code(settings.target_modules)}")
            adapter, modules = f"    **qlora({', '.join(options)}),", []
        elif settings.quantization == "int8":
            adapter = f"    quantization_config=BitsAndBytesConfig(load_in_8bit=True),\n{adapter}"
            modules.append("from transformers import BitsAndBytesConfig")
        load = {"dtype": settings.dtype}
        if settings.attn_implementation is not None:
            load["attn_implementation"] = settings.attn_implementation
        imports = "RegressionAwareConfig, RegressionAwareTrainer" + (
            ", qlora" if settings.quantization == "nf4" else ""
        )
        return "\n".join(
            [
                *modules,
                f"from raft_peft import {imports}",
                "",
                "trainer = RegressionAwareTrainer(",
                f"    {_code(self.model)},",
                "    RegressionAwareConfig(",
                '        "output",',
                f"        per_device_train_batch_size={settings.batch_size},",
                f"        gradient_accumulation_steps={settings.accumulation},",
                f"        gradient_checkpointing={settings.gradient_checkpointing},",
                f"        max_length={settings.max_length},",
                f"        bf16={settings.bf16},",
                f"        optim={_code(settings.optim)},",
                f"        model_init_kwargs={_code(load)},",
                "    ),",
                "    grid=[1, 2, 3, 4, 5],",
                "    train_dataset=dataset,",
                adapter,
                ")",
            ]
        )


def _on(switch: bool) -> str:
    return "on" if switch else "off"


def _code(value: Any) -> str:
    """As it is written in Python, with double quotes."""
    return repr(list(value) if isinstance(value, tuple) else value).replace("'", '"')
