# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # QLoRA on one GPU: what fits, and how it is done
#
# QLoRA keeps the base model's linear layers in 4 bits and trains a LoRA on top. First a plan: which Gemma 2 fits which
# GPU, with what settings. Then a run, with a GPU on Gemma 2 2B and without one on SmolLM2-135M, in 4 bits on the CPU.
# The outputs below are those of SmolLM2 on two CPU cores.

# %%
import logging
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, "..")  # examples/, where embedded_model.py lies
if not sys.warnoptions:  # warnings of the libraries beneath; raft-peft's own go to its log, and are shown
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import datasets
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from embedded_model import embedded_model
from IPython.display import Markdown, display
from transformers import Gemma2Config

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor, plan_memory, qlora
from raft_peft.tasks.synthetic import GRID, load_synthetic

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
plt.rcParams["figure.dpi"] = 80

# %% tags=["parameters"]
ON_GPU = torch.cuda.is_available()
MODEL = "google/gemma-2-2b" if ON_GPU else str(embedded_model())
LEARNING_RATE = 2e-4 if ON_GPU else 2e-3  # a small model takes larger steps
STEPS = 100 if ON_GPU else 16

# %% [markdown]
# ## What fits where
#
# `plan_memory` runs one training step on tensors that have shapes but no memory, and counts the bytes. It needs the
# model's config alone: `plan_memory("google/gemma-2-9b", "24GB")` reads it from the Hub, as does `raft-peft plan
# --model google/gemma-2-9b --gpu-memory 24GB`. The three configs are written out here, so that nothing has to be
# fetched. What is left open is chosen, the fastest first: no quantization rather than NF4, no gradient checkpointing
# rather than some, then as many rows of 512 tokens as fit, of 16 in an optimizer step.

# %%
SIZES = {  # hidden, layers, intermediate, heads, key-value heads, head_dim, query_pre_attn_scalar, as published
    "2b": (2304, 26, 9216, 8, 4, 256, 256),
    "9b": (3584, 42, 14336, 16, 8, 256, 256),
    "27b": (4608, 46, 36864, 32, 16, 128, 144),
}


def gemma2(size: str) -> Gemma2Config:
    hidden, layers, intermediate, heads, key_value_heads, head_dim, scalar = SIZES[size]
    return Gemma2Config(
        name_or_path=f"google/gemma-2-{size}",
        vocab_size=256_000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        sliding_window=4096,
    )


lines = ["| Gemma 2 | GPU | weights | checkpointing | rows x passes | memory | |", "|---|---|---|---|---|---|---|"]
for size in SIZES:
    for gpu in ("16GB", "24GB", "40GB", "80GB"):
        plan = plan_memory(gemma2(size), gpu)
        chosen = plan.settings
        weights = "bf16" if chosen.quantization == "none" else chosen.quantization.upper()
        lines.append(
            f"| {size.upper()} | {gpu} | {weights} | {'on' if chosen.gradient_checkpointing else 'off'} "
            f"| {chosen.batch_size} x {chosen.accumulation} | {plan.total / 1e9:.1f} GB "
            f"| {'fits' if plan.fits else 'does not fit'} |"
        )
display(Markdown("\n".join(lines)))

# %% [markdown]
# A plan holds to a few per cent where it was checked against measurement, on small models
# ([speed_and_memory.md](../../docs/speed_and_memory.md)); leave some room. Printed, it says where the memory goes,
# what else was looked at, and the Python that trains with it.

# %%
print(plan_memory(gemma2("27b"), "24GB"))

# %% [markdown]
# ## A run
#
# `qlora()` gives the two arguments for the usual choice: NF4 with double quantization, computed in bf16 (in float32
# on a CPU that only emulates bf16), and LoRA of rank 16 on all linear layers. The task is that of
# [01_tour.ipynb](01_tour.ipynb). The few steps here are there to show that it works, not to finish the training.

# %%
folder = tempfile.TemporaryDirectory()
adapter = Path(folder.name) / "adapter"
train, test = load_synthetic(8 * STEPS, seed=0), load_synthetic(64, seed=1)
trainer = RegressionAwareTrainer(
    MODEL,
    RegressionAwareConfig(
        str(adapter),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=32,
        learning_rate=LEARNING_RATE,
        padding_free=True,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    ),
    grid=GRID,
    train_dataset=train,
    **qlora(),
)
trainer.remove_callback(transformers.PrinterCallback)
before = trainer.predict(test)
trainer.train()
after = trainer.predict(test)

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(range(1, len(losses) + 1), losses)
axis.set(xlabel="step", ylabel="squared error", title="training loss", ylim=(0, None))
plt.show()
print(f"test RMSE {before.metrics['test_rmse']:.2f} before, {after.metrics['test_rmse']:.2f} after {STEPS} steps")

# %% [markdown]
# What the model is made of now. The 4-bit weights are stored two to a byte, so one byte of them is two weights. What
# is trained stays in float32, whatever the base is in.

# %%
sizes: dict[str, int] = {}
for parameter in trainer.model.parameters():
    kind = "LoRA, " if parameter.requires_grad else "base, "
    kind += "4 bits" if parameter.dtype == torch.uint8 else str(parameter.dtype).removeprefix("torch.")
    sizes[kind] = sizes.get(kind, 0) + parameter.numel() * parameter.element_size()
lines = ["| weights | MB |", "|---|---|", *(f"| {kind} | {size / 1e6:.1f} |" for kind, size in sizes.items())]
display(Markdown("\n".join(lines)))
if ON_GPU:
    print(f"highest memory allocated on the GPU: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")

# %% [markdown]
# ## Save and reload
#
# The folder holds the adapter, and `raft_config.json` says that its base was in NF4 and how it was computed. So the
# reloaded model is quantized alike and gives the same numbers, but for the rounding of bf16 in batches of another
# shape. `quantization_config=False` loads the base dense.

# %%
trainer.save_model()
predictor = RegressionPredictor.from_pretrained(adapter)
reloaded = predictor.predict(test["prompt"], show_progress=False)
print(f"adapter: {(adapter / 'adapter_model.safetensors').stat().st_size / 1e6:.1f} MB")
print(f"largest difference to the trainer's numbers: {np.abs(reloaded - after.predictions).max():.3f}")
lines = ["| input | truth | before | after | reloaded |", "|---|---|---|---|---|"]
for row in range(5):
    numbers = (test["label"][row], before.predictions[row], after.predictions[row], reloaded[row])
    lines.append(f"| {test['x'][row]:g} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## On a GPU of your own
#
# - Begin with `print(plan_memory(name, "24GB", max_length=...))`, with the length that your prompts have, and take its
#   settings over.
# - Where memory is short, in this order: fewer rows a forward pass, `gradient_checkpointing=True`, NF4.
# - An instruction-tuned model (`google/gemma-2-9b-it`) takes chats as prompts:
#   [03_llm_judge.ipynb](03_llm_judge.ipynb).
# - What each setting costs: [speed_and_memory.md](../../docs/speed_and_memory.md).

# %%
folder.cleanup()
