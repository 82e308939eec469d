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
# # Which method is best on your data?
#
# `compare_methods` trains several methods under one recipe and one budget, each run in a process of its own, and
# writes a table, pictures and predictions. It is what `raft-peft compare` runs on the command line
# ([compare.md](../../docs/compare.md)). This notebook compares four of the methods in
# [methods.md](../../docs/methods.md):
#
# - `rail`: no training, the expectation over the grid;
# - `ce`: cross-entropy of the number's text, as in plain supervised fine-tuning;
# - `special_token`: a linear head on one logit, trained on the squared error;
# - `raft`: the expectation over the grid, trained on its squared error.
#
# Without a GPU it runs on SmolLM2-135M, with one on Gemma 2 2B. The outputs below are those of SmolLM2 on one CPU
# core.

# %%
import contextlib
import csv
import io
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
import torch
from datasets import DatasetDict
from embedded_model import embedded_model
from IPython.display import Image, Markdown, display

from raft_peft import RegressionAwareConfig
from raft_peft.compare import CompareSettings, compare_methods
from raft_peft.tasks.synthetic import GRID, load_synthetic

datasets.disable_progress_bars()

# %% tags=["parameters"]
ON_GPU = torch.cuda.is_available()
MODEL = "google/gemma-2-2b" if ON_GPU else str(embedded_model())
LEARNING_RATES = "1e-4,3e-4" if ON_GPU else "2e-3"
SEEDS = 3 if ON_GPU else 1
STEPS = 24  # of 16 rows
TEST_ROWS = 80

# %% [markdown]
# ## Data and settings
#
# The dataset is a `DatasetDict` of `train`, `validation` and `test`, with the columns `prompt` and `label`. This one
# is the synthetic task of [01_tour.ipynb](01_tour.ipynb); put yours in its place. Each method takes the learning rate
# that is best on the validation rows, and each run its best step, so the test rows decide nothing.

# %%
folder = tempfile.TemporaryDirectory()
output = Path(folder.name) / "comparison"
dataset = DatasetDict(
    {
        "train": load_synthetic(16 * STEPS, seed=0),
        "validation": load_synthetic(TEST_ROWS // 2, seed=1),
        "test": load_synthetic(TEST_ROWS, seed=2),
    }
)
bf16 = bool(RegressionAwareConfig(str(output)).bf16)  # on where the hardware multiplies in bf16
settings = CompareSettings(
    model=MODEL,
    output_dir=str(output),
    methods="rail,ce,special_token,raft",
    seeds=SEEDS,
    learning_rates=LEARNING_RATES,
    max_steps=STEPS,
    eval_steps=STEPS // 4,
    bf16=bf16,
    attn_implementation="eager" if bf16 and not ON_GPU else None,
    decisions="mean,median",
)

# %% [markdown]
# ## The runs
#
# One line a run. A comparison that was interrupted goes on where it was when the same settings meet the same folder.

# %%
with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
    table = compare_methods(settings, dataset, GRID)

# %% [markdown]
# ## The table
#
# Lower RMSE is better, higher Pearson and Spearman are. `ce` has two rows: its texts parsed, and the expectation over
# the grid read from the same model. Methods with a distribution have a row for each decision rule that was asked for.
# With several seeds every figure is a mean with its standard deviation: a difference within that is none.
#
# In the run shown here training helps, and the three trained methods, one seed each and 24 steps, are too close to say
# which is best. [01_tour.ipynb](01_tour.ipynb) trains RAFT for 100 steps on this task and comes to an RMSE of 0.14.
# The minutes are those of a CPU core that was shared with other work; do not compare them.

# %%
display(Markdown(table.split("\n\n")[0]))

# %% [markdown]
# ## Validation error over the steps
#
# Which method learns fastest, and which would go on with more steps: a curve that still falls at its end has not been
# trained to its end, and its row in the table says little about a longer run.

# %%
Image(output / "pictures" / "validation_rmse.png")

# %% [markdown]
# ## Prediction against truth
#
# What the RMSE does not show. A horizontal band is a method that predicts the mean whatever it reads. Rows of points
# at one height are a method with favourite answers, as decoded text has. A few points far off can decide the RMSE:
# here two answers near 7 to targets near 0.6 make up most of RAFT's squared error.

# %%
Image(output / "pictures" / "prediction_and_truth.png")

# %% [markdown]
# ## What training did to the distribution
#
# For RAFT and cross-entropy, the probabilities of the grid before (`rail`) and after training, for four test rows.
# Cross-entropy raises the number with which the label's text begins, such as 8 for 8.98. RAFT moves the mean, and
# whatever shape has the right mean will do.

# %%
for method in ("ce", "raft"):
    display(Markdown(f"`{method}`"), Image(output / "pictures" / f"distributions_{method}.png"))

# %% [markdown]
# ## The predictions themselves
#
# Every test row lies in `predictions/METHOD/seedN.csv`, with the probability of each grid value, for pictures and
# tests of your own.

# %%
with (output / "predictions" / "raft" / "seed0.csv").open(newline="", encoding="utf-8") as file:
    header, *rows = csv.reader(file)
for cells in (header, *rows[:3]):
    print("  ".join(f"{cell[:10]:<10}" for cell in cells[:6]), "...")

# %% [markdown]
# ## How to choose
#
# - Take the method with the lowest RMSE if the differences are larger than the spread over the seeds; else the one
#   that is simplest to use. RAFT and cross-entropy need no new weights and keep a distribution; a head gives a number
#   alone.
# - `rail` costs nothing. If training hardly beats it, the data is too little or too noisy, or the learning rate is
#   wrong.
# - Give every method the same care: several learning rates (`learning_rates="1e-4,3e-4,1e-3"`) and three seeds.
#
# On STS-B, with three seeds, the same comparison is in [compare.md](../../docs/compare.md).

# %%
folder.cleanup()
