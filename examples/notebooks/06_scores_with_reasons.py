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
# # One answer, five reasonings, five distributions, one score
#
# A judge that says why before it says how much: it writes a reasoning, and the probabilities of all scores are read
# behind it. Asked five times, it finds five reasonings. The score is decided by the mean of the five distributions;
# how far they lie apart shows what hangs on the reasons. [reasons.md](../../docs/reasons.md) describes all of it.
#
# Without a GPU it runs on SmolLM2-135M-Instruct, with one on Gemma 2 2B IT. The outputs below are those of SmolLM2,
# which is far too small to judge answers in earnest, after training on 48 made-up rows.

# %%
import logging
import sys
import tempfile
import warnings
from itertools import product
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
from datasets import Dataset
from embedded_model import embedded_model
from peft import LoraConfig

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
plt.rcParams["figure.dpi"] = 80

# %% tags=["parameters"]
ON_GPU = torch.cuda.is_available()
MODEL = "google/gemma-2-2b-it" if ON_GPU else str(embedded_model())
LEARNING_RATE = 2e-4 if ON_GPU else 1e-3  # a small model takes larger steps
EPOCHS = 3

# %% [markdown]
# ## Judged answers with reasons, made up
#
# Each answer is put together from parts. The score is 5, less 3 if it answers another question, less 1 if it gives no
# reason. The reasoning says which of these is so, and never the score itself.

# %%
FACTS = [
    line.split(" | ")  # question, answer, reason
    for line in """\
Why is the sky blue? | From scattered sunlight. | Air scatters short waves more than long ones.
Which planet is the largest? | Jupiter. | It has more mass than all the others together.
Why do ships of steel float? | They push water aside. | That water weighs as much as the ship.
What do bees make honey from? | From nectar. | They thicken it in the hive until it keeps.
Why does bread rise? | Because of yeast. | The yeast gives off gas, which the dough holds.
What causes the tides? | The Moon. | It pulls the near side of the sea the most.
Why does ice float on water? | It is less dense. | Water expands when it freezes.
Why is the sea salty? | Because of rivers. | They carry minerals into it, and only the water leaves.
How do fish breathe? | Through gills. | Oxygen passes from the water into their blood there.
Why do leaves turn yellow? | They lose their green. | The tree takes it apart and stores the pieces.
Why do metals feel cold? | They conduct heat. | They draw it from the hand faster than wood.
What makes a rainbow? | Drops of rain. | They bend each colour of the light differently.
""".splitlines()
]
ASSESS = "Assess the answer to the question in two sentences. Then write [RESULT] and a score from 1 to 5."


def judged(fact: int, other: int, has_reason: bool) -> dict:
    """An answer to a question, perhaps that of another one, with its assessment and its score."""
    question, (_, answer, reason) = FACTS[fact][0], FACTS[(fact + other) % len(FACTS)]
    said = f"{answer} {reason}" if has_reason else answer
    about = "It answers another question." if other else "It answers the question."
    return {
        "prompt": [{"role": "user", "content": f"{ASSESS}\n\nQuestion: {question}\nAnswer: {said}"}],
        "reasoning": f"{about} It gives {'a' if has_reason else 'no'} reason.",
        "label": 5.0 - 3 * (other > 0) - (not has_reason),
    }


rows = [judged(fact, other, has_reason) for fact, other, has_reason in product(range(12), (0, 5), (False, True))]
print(len(rows), "rows. One of them:")
print(rows[2]["prompt"][0]["content"].removeprefix(ASSESS).strip())
print(rows[2]["reasoning"], "->", rows[2]["label"])

# %% [markdown]
# ## Training
#
# Rows with a `reasoning` are all it takes. The words between a reasoning and its score are `score_prefix`.

# %%
GRID = [1, 2, 3, 4, 5]
output = tempfile.TemporaryDirectory()
adapter = Path(output.name) / "judge"
trainer = RegressionAwareTrainer(
    MODEL,
    RegressionAwareConfig(
        str(adapter),
        score_prefix="\n[RESULT] ",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=8,
        learning_rate=LEARNING_RATE,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    grid=GRID,
    train_dataset=Dataset.from_list(rows),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
trainer.save_model()
trainer.end()

# %% [markdown]
# ## Five reasonings
#
# A question and an answer that are new to the model: it answers the question, and gives a reason.

# %%
judge = RegressionPredictor.from_pretrained(adapter)
answer = "They have a mirror behind the retina. It sends the light through the eye twice."
new = f"{ASSESS}\n\nQuestion: Why do cats see well at night?\nAnswer: {answer}"
prompt = [{"role": "user", "content": new}]
found = judge.predict_with_reasons([prompt], 5, max_reasoning_tokens=64, seed=0, show_progress=False)
for reasoning, number in zip(found.reasonings[0], found.numbers[0], strict=True):
    print(f"{number:.2f}  {reasoning}")
print(f"\nscore {found.predictions[0]:.2f}, between reasonings {found.between[0]:.2f}, within {found.within[0]:.2f}")
print(f"{found.unfinished[0]} reasonings did not end")

# %% [markdown]
# By the rule this answer deserves a 5. After so little training the model finds the right reasons once in five, and
# only behind these it gives a higher number. So the score follows the reasons, right or wrong, and `between` tells
# that they do not agree.
#
# Behind each reasoning stands a distribution. Given a reasoning in the row, nothing is written, and it is read again:
# so the five distributions are those of five rows. Their mean is the distribution of the score.

# %%
given = [{"prompt": prompt, "reasoning": reasoning} for reasoning in found.reasonings[0]]
each = judge.predict_distribution(given, show_progress=False)
assert found.distribution is not None
mean = found.distribution.probs[0]
print(f"largest difference from their mean: {(each.probs.mean(0) - mean).abs().max():.1e}")
figure, axes = plt.subplots(1, 6, figsize=(10, 2), sharey=True)
for place, axis in enumerate(axes):
    axis.bar(GRID, each.probs[place] if place < 5 else mean, color="tab:blue" if place < 5 else "tab:orange")
    axis.set_title(f"reasoning {place + 1}" if place < 5 else "mean", fontsize=9)
    axis.set_xticks(GRID)
axes[0].set_ylabel("probability")
plt.tight_layout()
plt.show()

# %% [markdown]
# `between` is the standard deviation of the five numbers, and `within` the spread that is left inside the
# distributions. Together they are the spread of the mean, as the squares add up.

# %%
on_grid = np.array(each.renormalized().probs.tolist())
values = np.array(GRID)
numbers = on_grid @ values
spread = np.sqrt(on_grid.mean(0) @ (values - numbers.mean()) ** 2)
print(f"spread of the mean {spread:.3f}, of both parts {np.hypot(np.std(numbers), found.within[0]):.3f}")
output.cleanup()
