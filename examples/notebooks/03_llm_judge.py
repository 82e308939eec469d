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
# # A judge that gives scores, and says how sure it is
#
# A judge reads a rubric, a question and an answer, and gives a score from 1 to 5. Asked to write the score, it gives
# one digit. Here its probabilities of all five digits are read instead: the score is their expectation, and the spread
# shows doubt. First zero-shot, then fine-tuned on a few dozen judged answers.
#
# Without a GPU it runs on SmolLM2-135M-Instruct, with one on Gemma 2 2B IT. The outputs below are those of SmolLM2 on
# one CPU core. It is far too small to judge answers in earnest, and shows how things are done.

# %%
import logging
import sys
import tempfile
import time
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
from IPython.display import Image, Markdown, display
from peft import LoraConfig

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor
from raft_peft.decisions import decide
from raft_peft.metrics import regression_metrics
from raft_peft.plots import plot_distributions, plot_predictions

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
plt.rcParams["figure.dpi"] = 80

# %% tags=["parameters"]
ON_GPU = torch.cuda.is_available()
MODEL = "google/gemma-2-2b-it" if ON_GPU else str(embedded_model())
LEARNING_RATE = 2e-4 if ON_GPU else 1e-3  # a small model takes larger steps
EPOCHS = 6

# %% [markdown]
# ## Judged answers, made up
#
# No person judged these. Each answer is put together from parts, and its score follows from a rule: 5, less 3 if it
# answers another question, less 1 if it gives no reason, less 1 if it is rude, and never below 1. The rubric states
# the same rule. So the truth is known exactly, which with real judgements it is not; and a high score below means only
# that the model has learned this rule. For a judge of your own, take scores that people gave.

# %%
FACTS = [
    line.split(" | ")  # question, answer, reason
    for line in """\
At how many degrees Celsius does water boil? | Water boils at 100 degrees. | Its vapour then pushes as the air does.
Why is the sky blue? | The sky is blue from scattered sunlight. | Air scatters short waves more than long ones.
How many legs does a spider have? | A spider has eight legs. | Spiders are arachnids, and all arachnids have eight.
Which planet is the largest? | Jupiter is the largest planet. | It has more mass than all the others together.
Why do ships of steel float? | Ships float because they push water aside. | That water weighs as much as the ship.
What do bees make honey from? | Bees make honey from nectar. | They thicken it in the hive until it keeps.
Why do leaves turn yellow in autumn? | Leaves lose their chlorophyll. | The tree takes it apart and stores the pieces.
How long does the Earth take to go round the Sun? | The Earth takes about 365 days. | That is why a year has as many.
Why does bread rise? | Bread rises because of yeast. | The yeast gives off gas, which the dough holds.
What causes the tides? | The tides are caused by the Moon. | It pulls the near side of the sea the most.
Why does ice float on water? | Ice floats because it is less dense. | Water expands when it freezes.
What is the hardest natural mineral? | Diamond is the hardest mineral. | Each of its atoms is bound to four others.
Why do cats see well at night? | Cats have a mirror behind the retina. | It sends the light through the eye twice.
Why is the sea salty? | The sea is salty because of rivers. | They carry minerals into it, and only the water leaves.
What makes a rainbow? | A rainbow is made by drops of rain. | They bend each colour of the light differently.
Why do metals feel cold? | Metals feel cold since they conduct heat. | They draw it from the hand faster than wood.
How do fish breathe? | Fish breathe through gills. | Oxygen passes from the water into their blood there.
Why does the Moon have phases? | We see a changing part of the Moon lit. | It goes round the Earth once a month.
""".splitlines()
]
RUDE = [
    "What a silly question.",
    "Even a child knows that.",
    "Do not waste my time.",
    "Look it up yourself next time.",
]
RUBRIC = """You grade answers to simple questions with a score from 1 to 5.
Start from 5 and take points off for what is wrong with the answer.
Take off 3 if the answer is about something else than what the question asks.
Take off 1 if the answer gives no reason for what it says. One sentence of reason is enough.
Take off 1 if the answer is rude to the person who asks.
Do not take anything off for the length of the answer or for its style.
The lowest score is 1, however much there would be to take off.
Write the score as one digit and nothing else."""

Defects = tuple[bool, ...]  # off topic, no reason, rude
NAMES = ("off topic", "no reason", "rude")


def judged(fact: int, defects: Defects) -> dict:
    """A row: the messages to the judge, the score by the rule, and the defects that it follows from."""
    off_topic, no_reason, rude = defects
    question = FACTS[fact][0]
    half = len(FACTS) // 2  # an answer to another question is taken from the same half: one trains, the other tests
    answered = fact // half * half + (fact + 4) % half if off_topic else fact
    _, answer, reason = FACTS[answered]
    said = filter(None, (RUDE[fact % len(RUDE)] if rude else "", answer, "" if no_reason else reason))
    return {
        "prompt": [{"role": "user", "content": f"{RUBRIC}\n\nQuestion: {question}\nAnswer: {' '.join(said)}"}],
        "label": float(max(1, 5 - 3 * off_topic - no_reason - rude)),
        "defects": ", ".join(name for name, has in zip(NAMES, defects, strict=True) if has) or "none",
    }


every_kind: list[Defects] = list(product((False, True), repeat=3))
train = Dataset.from_list([judged(fact, kind) for fact in range(9) for kind in every_kind])
test = Dataset.from_list([judged(fact, kind) for fact in range(9, 18) for kind in every_kind])
labels = np.array(test["label"])
print(len(train), "rows to train on,", len(test), "to test, with other questions")
example = test[1]
print(example["prompt"][0]["content"].removeprefix(RUBRIC))
print(f"Score: {example['label']:g} (defects: {example['defects']})")

# %% [markdown]
# ## Zero-shot
#
# `prompt` is a list of messages, so the model's chat template is applied, and the number is read where the assistant
# would begin to speak. Zero-shot, the probabilities are renormalized over the grid: what the model would say instead
# of a score is left out ([grids.md](../../docs/grids.md)).

# %%
GRID = [1, 2, 3, 4, 5]
output = tempfile.TemporaryDirectory()
adapter = Path(output.name) / "judge"
zero_shot = RegressionPredictor.from_pretrained(MODEL, grid=GRID, renormalize=True)
before = zero_shot.predict_distribution(test["prompt"], show_progress=False)
before_scores = decide(before, "mean", renormalize=True).numpy()
print(f"probability on the grid: {before.mass.mean():.3f}")
print({name: round(value, 3) for name, value in regression_metrics(before_scores, labels).items()})

# %% [markdown]
# ## The rubric is computed once
#
# All prompts begin with the same rubric. A prediction runs it once and keeps its keys and values for all rows. To see
# what that is worth, here are the same prompts once more, each read alone, so that nothing is in common. One prompt a
# forward pass in both cases; the ratio depends on the lengths and the machine.

# %%
rows = test["prompt"]
tokenizer = zero_shot.tokenizer
rubric_tokens = len(tokenizer(RUBRIC)["input_ids"])
prompt_tokens = np.mean([len(tokenizer(messages[0]["content"])["input_ids"]) for messages in rows])

started = time.perf_counter()
shared = np.concatenate([part.predictions for part in zero_shot.read(rows, 1, show_progress=False)])
seconds_shared = time.perf_counter() - started
started = time.perf_counter()
alone = np.concatenate([part.predictions for part in zero_shot.read(rows, 1, chunk_size=1, show_progress=False)])
seconds_alone = time.perf_counter() - started

print(f"{rubric_tokens} of {prompt_tokens:.0f} tokens are the rubric")
print(f"each prompt whole takes {seconds_alone / seconds_shared:.1f} times as long")
print(f"largest difference of the scores: {np.abs(shared - alone).max():.1e}")
del zero_shot

# %% [markdown]
# ## Training
#
# The same rows with their scores. `padding_free=True` computes the rubric once a batch in training too.

# %%
trainer = RegressionAwareTrainer(
    MODEL,
    RegressionAwareConfig(
        str(adapter),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
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
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
trainer.save_model()

judge = RegressionPredictor.from_pretrained(adapter)
after = judge.predict_distribution(test["prompt"], show_progress=False)
scores = judge.predict(test["prompt"], show_progress=False)
print({name: round(value, 3) for name, value in regression_metrics(scores, labels).items()})

# %%
picture = Path(output.name) / "scores.png"
plot_predictions(picture, labels, {"zero-shot, renormalized": before_scores, "after RAFT": scores})
Image(picture)

# %% [markdown]
# ## What it has learned, and what not
#
# The mean score for each set of defects. The questions of the test are new to the model.

# %%
kinds = test["defects"]
lines = ["| defects | true score | zero-shot | after RAFT |", "|---|---|---|---|"]
for kind in dict.fromkeys(kinds):
    of_kind = np.array([one == kind for one in kinds])
    cells = [f"{numbers[of_kind].mean():.2f}" for numbers in (labels, before_scores, scores)]
    lines.append(f"| {kind} | {' | '.join(cells)} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# From 72 rows, SmolLM2 gives the lowest score to nearly every answer to another question, and does not tell 2 from 1
# among them. It also takes some good answers for answers to another question. A single smaller defect moves the score
# by less than half a point, where it should be one.
#
# ## The distribution behind a score
#
# Before and after, for three answers from the worst to the best. 3.5 may stand for "between 3 and 4" or for "5 or 2":
# the mean alone does not tell, the distribution does.

# %%
picture = Path(output.name) / "distributions.png"
plot_distributions(picture, GRID, before.probs.numpy(), after.probs.numpy(), labels, rows=3)
Image(picture)

# %% [markdown]
# ## Doubt
#
# The entropy is 0 where all probability is on one score, and at most log 5 = 1.61. Sorted by it, do the errors grow?
# If so, the answers with the highest entropy are those to hand to a person. This has to be checked on rows with known
# scores, as here, before it is relied upon.

# %%
entropy, error = after.entropy.numpy(), np.abs(scores - labels)
order = np.argsort(entropy)
thirds = np.array_split(order, 3)
lines = ["| third of the rows, by entropy | entropy | mean absolute error |", "|---|---|---|"]
for name, third in zip(("surest", "middle", "least sure"), thirds, strict=True):
    lines.append(f"| {name} | {entropy[third].mean():.2f} | {error[third].mean():.2f} |")
display(Markdown("\n".join(lines)))

figure, axis = plt.subplots(figsize=(6, 3))
axis.scatter(entropy, error, s=12)
axis.set(xlabel="entropy, nats", ylabel="absolute error", title="one point an answer")
plt.show()

# %% [markdown]
# In the run shown here the error grows with the entropy. But some of the worst errors come with little of it: the
# model can be sure and wrong.
#
# ## One score out of a distribution
#
# The mean is what was trained. Median and mode are whole scores, for a report that has room for those only. They lose
# what lies between: if the mean is well ahead, round it only for display.

# %%
lines = ["| rule | first five answers | RMSE | hits, rounded |", "|---|---|---|---|"]
for rule in ("mean", "median", "mode"):
    numbers = decide(after, rule).numpy()
    hits = (np.clip(np.round(numbers), 1, 5) == labels).mean()
    first = ", ".join(f"{number:.3g}" for number in numbers[:5])
    lines.append(f"| {rule} | {first} | {regression_metrics(numbers, labels)['rmse']:.2f} | {hits:.0%} |")
display(Markdown("\n".join(lines)))
print("true scores of the first five:", ", ".join(f"{label:g}" for label in labels[:5]))

# %% [markdown]
# ## Where to go on
#
# - Thousands of answers in a file: `raft-peft predict answers.jsonl scores.jsonl --model judge --distribution`, which
#   goes on where it was stopped. For clusters, [predict_with_ray.py](../predict_with_ray.py) and
#   [predict_with_datasets.py](../predict_with_datasets.py).
# - A scale of 0 to 100, or letters for scores: [grids.md](../../docs/grids.md).
# - A judge of 9 or 27 billion weights on one GPU: [04_qlora_on_one_gpu.ipynb](04_qlora_on_one_gpu.ipynb).

# %%
output.cleanup()
