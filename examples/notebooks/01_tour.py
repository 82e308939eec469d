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
# # A tour in ten minutes: from zero-shot to fine-tuned
#
# A language model answers in tokens. When the answer is a number, `raft-peft` reads the probabilities of a few number
# tokens, the *grid*, at the place where the number would begin. Their expectation is the prediction (RAIL). Training
# makes the squared error of that expectation small (RAFT). This notebook shows both on one small task.
#
# Without a GPU it runs on SmolLM2-135M, with one on Gemma 2 2B. The outputs below are those of SmolLM2 on one CPU
# core.

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
from IPython.display import Image, Markdown, display
from peft import LoraConfig

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor
from raft_peft.decisions import decide
from raft_peft.metrics import regression_metrics
from raft_peft.plots import plot_distributions, plot_entropy_change, plot_predictions
from raft_peft.tasks.synthetic import GRID, load_synthetic

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
plt.rcParams["figure.dpi"] = 80

# %% tags=["parameters"]
ON_GPU = torch.cuda.is_available()
MODEL = "google/gemma-2-2b" if ON_GPU else str(embedded_model())
LEARNING_RATE = 2e-4 if ON_GPU else 2e-3  # a small model takes larger steps
TRAIN_ROWS = 800
TEST_ROWS = 200
EPOCHS = 2

# %% [markdown]
# ## The task
#
# A row is a `prompt` that ends where the number begins, and a `label`. Here the prompt states an input between 0 and
# 100, and the label is a smooth function of it between 0 and 9. The grid is the ten digits; labels lie between them.

# %%
folder = tempfile.TemporaryDirectory()
output = Path(folder.name)
train, test = load_synthetic(TRAIN_ROWS, seed=0), load_synthetic(TEST_ROWS, seed=1)
labels = np.array(test["label"])
for row in train.select(range(3)):
    print(row["prompt"][-40:], "->", row["label"])

# %% [markdown]
# ## One prompt, before any training
#
# `predict_distribution` gives the probability of each number of the grid, over the whole vocabulary, so that what is
# missing to one is what the model would rather say instead.

# %%
zero_shot = RegressionPredictor.from_pretrained(MODEL, grid=GRID)
prompt = test[0]["prompt"]
one = zero_shot.predict_distribution([prompt])

figure, axis = plt.subplots(figsize=(6, 3))
axis.bar([*map(str, GRID), "other"], [*one.probs[0].tolist(), one.mass_off_grid[0].item()])
axis.set(xlabel="next token", ylabel="probability", title=f"...{prompt[-40:]}")
plt.show()
print(f"prediction {zero_shot.predict([prompt])[0]:.2f}, truth {labels[0]:.2f}")
print(f"probability on the grid {one.mass[0]:.2f}, entropy {one.entropy[0]:.2f} of at most {np.log(len(GRID)):.2f}")

# %% [markdown]
# ## All test rows, before any training
#
# The same for the whole test set. What all prompts begin with is computed once, so this takes seconds.

# %%
before = zero_shot.predict_distribution(test["prompt"], show_progress=False)
before_numbers = zero_shot.predict(test["prompt"], show_progress=False)
print({name: round(value, 3) for name, value in regression_metrics(before_numbers, labels).items()})
del zero_shot

# %% [markdown]
# ## Training
#
# `RegressionAwareTrainer` is TRL's `SFTTrainer` with another loss. `padding_free=True` lays the rows of a batch end to
# end and computes their common beginning once. All other settings are those of `SFTConfig`.

# %%
trainer = RegressionAwareTrainer(
    MODEL,
    RegressionAwareConfig(
        str(output / "adapter"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        learning_rate=LEARNING_RATE,
        padding_free=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    ),
    grid=GRID,
    train_dataset=train,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.remove_callback(transformers.PrinterCallback)  # the losses are drawn below instead of printed
trainer.train()

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
figure, axis = plt.subplots(figsize=(6, 3))
axis.semilogy(range(1, len(losses) + 1), losses)
axis.set(xlabel="step", ylabel="squared error", title="training loss")
plt.show()

# %% [markdown]
# ## Save and reload
#
# The folder holds the adapter as PEFT writes it, the tokenizer and `raft_config.json`, which knows the grid and how
# the number was read. `RegressionPredictor` needs nothing else. Its numbers are those of the trainer but for rounding:
# they come from batches of another shape, under bf16 where the hardware has it.

# %%
trainer.save_model()
for path in sorted((output / "adapter").iterdir()):
    print(f"{path.stat().st_size / 1e6:8.3f} MB  {path.name}")

predictor = RegressionPredictor.from_pretrained(output / "adapter")
after = predictor.predict_distribution(test["prompt"], show_progress=False)
after_numbers = predictor.predict(test["prompt"], show_progress=False)
of_trainer = trainer.predict(test).predictions
print(f"\nlargest difference to the trainer's numbers: {np.abs(after_numbers - of_trainer).max():.3f}")
for name, numbers in (("trainer", of_trainer), ("reloaded", after_numbers)):
    print(f"RMSE, {name}: {regression_metrics(numbers, labels)['rmse']:.3f}")

# %% [markdown]
# ## Prediction against truth
#
# The grey line is the function, a point is a prediction. On the right the model has learned the curve, between the
# grid points too.

# %%
plot_predictions(
    output / "predictions.png",
    labels,
    {"zero-shot": before_numbers, "after RAFT": after_numbers},
    x=test["x"],
    x_label="input score",
)
Image(output / "predictions.png")

# %% [markdown]
# ## The distribution before and after
#
# Four rows, from the least target to the greatest. Training asks for the right expectation and nothing else, so it may
# reach it with several numbers at once, or by putting probability outside the grid, where it counts as 0. Settings
# that change this are in [methods.md](../../docs/methods.md).

# %%
plot_distributions(output / "distributions.png", list(GRID), before.probs.numpy(), after.probs.numpy(), labels)
Image(output / "distributions.png")

# %% [markdown]
# ## How sure is it?
#
# The entropy of the distribution is 0 where the model is sure of one number. The picture shows how training changed
# it, row by row. It is a measure of spread, not a calibrated error: between two grid points even a perfect prediction
# needs some.

# %%
plot_entropy_change(output / "entropy.png", before.entropy.numpy(), {"RAFT": (after.entropy - before.entropy).numpy()})
Image(output / "entropy.png")

# %% [markdown]
# ## From the distribution to one number
#
# For a distribution that says what the model believes, the mean is best for the squared error, the median for the
# absolute error, the mode for hits. RAFT shapes the mean alone, so here the mean is best by both measures, and the
# others are poor. Before you take another rule, measure it on rows of yours.

# %%
lines = ["| rule | RMSE | MAE |", "|---|---|---|"]
for rule in ("mean", "median", "mode"):
    metrics = regression_metrics(decide(after, rule).numpy(), labels)
    lines.append(f"| {rule} | {metrics['rmse']:.3f} | {metrics['mae']:.3f} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# To have another rule from the start: `RegressionPredictor.from_pretrained(folder, decision="median")`.
#
# ## Where to go on
#
# - [02_choosing_a_method.ipynb](02_choosing_a_method.ipynb): RAFT beside its alternatives on your data.
# - [03_llm_judge.ipynb](03_llm_judge.ipynb): chat prompts with a rubric.
# - [04_qlora_on_one_gpu.ipynb](04_qlora_on_one_gpu.ipynb): models of 2 to 27 billion weights on one GPU.
# - [grids.md](../../docs/grids.md): which numbers to put on the grid.
#
# The adapter lies in a temporary folder. Save it elsewhere to keep it.

# %%
folder.cleanup()
