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
# # Several questions about one text
#
# The decisions APIs (`/v1/systemone` of vLLM and others, OpenAI's `/v1/decisions`) ask one *state* several typed
# questions, and read each answer from the probabilities of labels at the first position of the reply. Here the same
# form is trained: tickets of a shop, each with four questions. Then the answers are read, calibrated and evaluated.
#
# Without a GPU it runs on SmolLM2-135M-Instruct, with one on Gemma 2 2B IT. The outputs below are those of SmolLM2
# on one CPU core.

# %%
import logging
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

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
from peft import LoraConfig

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor
from raft_peft.data.questions.dataset import as_question_dataset
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.questions.template import QuestionTemplate

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
plt.rcParams["figure.dpi"] = 80

# %% tags=["parameters"]
ON_GPU = torch.cuda.is_available()
MODEL = "google/gemma-2-2b-it" if ON_GPU else str(embedded_model())
LEARNING_RATE = 2e-4 if ON_GPU else 1e-3  # a small model takes larger steps
TRAIN_ROWS = 240
HELD_OUT_ROWS = 100
TEST_ROWS = 100
EPOCHS = 2

# %% [markdown]
# ## Questions
#
# As the APIs have them: a `score` has levels in order, a `noul` (or `predicate`) is answered by yes or no, a
# `choice` by one of its options. A fourth type is our own: a `number` has any numbers for labels.

# %%
QUESTIONS = {
    "urgency": {
        "type": "score",
        "instructions": "How urgent is it for the customer?",
        "criteria": ["can wait", "this week", "today"],
    },
    "refund": {"type": "noul", "instructions": "Does the customer ask for money back?"},
    "team": {
        "type": "choice",
        "instructions": "Which team should answer?",
        "criteria": {"billing": "payments and invoices", "delivery": "parcels", "technical": "errors of the app"},
    },
    "days": {
        "type": "number",
        "instructions": "In how many days will it be solved?",
        "criteria": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    },
}

# %% [markdown]
# ## Tickets, made up
#
# Each ticket is put together from parts that give the truth: its team, its urgency, and whether money is asked for.
# The days follow by a rule: 1, 3 or 7 by urgency, and one more in the technical team. A target may be one answer, or
# the answers of several people: here three people judge the urgency, and one of them is sometimes a level off.

# %%
TOPICS = {
    "billing": [
        "I was charged twice for {thing}.",
        "The invoice for {thing} has the wrong name.",
        "{thing}: not my price!",
    ],
    "delivery": [
        "The parcel with {thing} has not come.",
        "{thing} lies at the wrong post office.",
        "Where is {thing}?",
    ],
    "technical": [
        "The app crashes when I open {thing}.",
        "I cannot log in to see {thing}.",
        "{thing} shows an error.",
    ],
}
THINGS = [
    "the lamp",
    "my order 4411",
    "the blue chair",
    "the tickets",
    "my subscription",
    "the headphones",
    "the bike",
]
URGENCY = [
    ["No hurry.", "Whenever you find the time.", "It is not important."],
    ["I need it by the end of the week.", "Please answer in the next days.", "It should be done before Sunday."],
    ["I need it today!", "This cannot wait another hour.", "Answer me at once."],
]
REFUND = [["Thank you.", "Can you look into it?", "Best wishes."], ["I want my money back.", "Please refund me."]]


def ticket(rng: random.Random) -> dict:
    """A row: the state, the questions about it, and their targets."""
    team, urgency, refund = rng.choice(list(TOPICS)), rng.randrange(3), rng.randrange(2)
    topic = rng.choice(TOPICS[team]).format(thing=rng.choice(THINGS))
    parts = [topic[0].upper() + topic[1:], rng.choice(URGENCY[urgency]), rng.choice(REFUND[refund])]
    third = min(2, max(0, urgency + rng.choice([-1, 0, 0, 1])))
    return {
        "state": {"from": f"customer{rng.randrange(1000)}@example.com", "text": " ".join(parts)},
        "questions": QUESTIONS,
        "targets": {
            "urgency": [urgency, urgency, third],
            "refund": bool(refund),
            "team": team,
            "days": [1, 3, 7][2 - urgency] + (team == "technical"),
        },
    }


rng = random.Random(0)
train, held_out, test = ([ticket(rng) for _ in range(rows)] for rows in (TRAIN_ROWS, HELD_OUT_ROWS, TEST_ROWS))
example = test[0]
print(example["state"])
print(example["targets"])

# %% [markdown]
# ## What the model reads
#
# The words are those of vLLM, so that the trained model answers the same behind its server. The state comes first,
# and all questions about it begin with the same tokens, which are computed once. The label is the first token of the
# reply.

# %%
template = QuestionTemplate.of("vllm")
row = QuestionRow.of(example)
print(template.content(template.state_text(row.state), row.questions[0]))
print("---")
print(template.content("(the state)", row.questions[1]))

# %% [markdown]
# ## Zero-shot
#
# Any model answers questions. `value` is the expected level, counted from 0, the probability of yes, the expected
# number, or the likeliest option. `probabilities` are given the labels, and `label_mass` is the probability of all
# labels: the rest is what the model would rather say.

# %%
zero_shot = RegressionPredictor.from_pretrained(MODEL)
before = zero_shot.decide_rows(test, show_progress=False)


def show(answers: dict, targets: dict) -> None:
    lines = ["| question | answer | truth | label mass |", "|---|---|---|---|"]
    for name, answer in answers.items():
        value = answer.value if isinstance(answer.value, str) else f"{answer.value:.2f}"
        lines.append(f"| {name} | {value} | {targets[name]} | {answer.label_mass:.3f} |")
    display(Markdown("\n".join(lines)))


show(before[0], example["targets"])
del zero_shot

# %% [markdown]
# ## Training
#
# `RegressionAwareTrainer` takes the rows as they are. There is no `grid`, since the questions bring their options
# along. Scores, yes and no, and numbers are trained by RAFT on the expected value, with cross-entropy beside it, and
# choices by cross-entropy. A batch counts rows, each with all of its questions.

# %%
folder = tempfile.TemporaryDirectory()
adapter = Path(folder.name) / "tickets"
trainer = RegressionAwareTrainer(
    MODEL,
    RegressionAwareConfig(
        str(adapter),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        learning_rate=LEARNING_RATE,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    ),
    train_dataset=as_question_dataset(train, "train"),
    eval_dataset=as_question_dataset(test, "test"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.remove_callback(transformers.PrinterCallback)  # the losses are drawn below instead of printed
metrics_before = trainer.evaluate()
trainer.train()
metrics_after = trainer.evaluate()
trainer.save_model()

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
figure, axis = plt.subplots(figsize=(6, 3))
axis.semilogy(range(1, len(losses) + 1), losses)
axis.set(xlabel="step", ylabel="mean over all questions", title="training loss")
plt.show()

# %% [markdown]
# ## Metrics
#
# `evaluate` gives each question its metrics, and each type. `macro_nll`, the mean of the cross-entropies, is a
# number to choose a checkpoint by (`metric_for_best_model="macro_nll"`).

# %%
lines = ["| metric | zero-shot | after training |", "|---|---|---|"]
for name in (
    *("urgency_rmse", "urgency_pearson", "refund_auc", "refund_brier", "team_accuracy", "team_nll"),
    *("days_rmse", "days_pearson", "macro_nll"),
):
    lines.append(f"| {name} | {metrics_before[f'eval_{name}']:.3f} | {metrics_after[f'eval_{name}']:.3f} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# In the run shown here, SmolLM2 has learned from 240 tickets who asks for money back, and most of the urgency. It
# knows the days only roughly, since they follow from two things, and hardly tells the teams apart.
#
# ## Ask the saved model
#
# The folder holds the adapter and the questions. `decide(state)` asks those of training, and `decide(state,
# questions)` others. Below, the probabilities of one ticket, before and after.

# %%
predictor = RegressionPredictor.from_pretrained(adapter)
answers = predictor.decide(example["state"])
show(answers, example["targets"])

figure, axes = plt.subplots(1, len(answers), figsize=(12, 3), constrained_layout=True)
for axis, (name, answer) in zip(axes, answers.items(), strict=True):
    places = np.arange(len(answer.probabilities))
    axis.bar(places - 0.2, before[0][name].probabilities.values(), 0.4, color="0.7", label="zero-shot")
    axis.bar(places + 0.2, answer.probabilities.values(), 0.4, label="after training")
    axis.set_xticks(places, answer.probabilities, fontsize=8)
    axis.set(title=name, ylim=(0, 1))
axes[0].set_ylabel("probability given the labels")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Another question
#
# A question that was not trained is answered too. Nobody promises that it is answered well.

# %%
tone = {"tone": {"type": "score", "instructions": "How polite is it?", "criteria": ["rude", "plain", "polite"]}}
print(predictor.decide("Answer me at once!", tone)["tone"])

# %% [markdown]
# ## Calibration
#
# Held-out rows teach how far answers err: each score and number then has an interval, and each choice and question
# of yes and no the options that hold the true one as often as is asked for. `save` writes the calibration into the
# folder, where `from_pretrained` finds it.

# %%
calibration = predictor.calibrate_questions(held_out, show_progress=False)
calibration.save(adapter)
print(calibration)

for name, answer in predictor.decide(example["state"], interval=0.9).items():
    limits = answer.options if answer.low is None else f"{answer.low:.2f} to {answer.high:.2f}"
    print(f"{name}: {limits}, truth {example['targets'][name]}")

# %% [markdown]
# Where little was learned, intervals are wide and sets are large: of the team nearly every option remains. That is
# what a calibration is for. On test rows, how often is the truth within? For the urgency, the truth is the mean of
# the three judgements.

# %%
after = predictor.decide_rows(test, interval=0.9, show_progress=False)


def is_within(answer: Any, target: Any) -> bool:
    if answer.low is not None:
        return answer.low <= np.mean(target) <= answer.high
    return {True: "yes", False: "no"}.get(target, target) in answer.options


for name in QUESTIONS:
    share = np.mean([is_within(row[name], ticket["targets"][name]) for row, ticket in zip(after, test, strict=True)])
    print(f"{name}: {share:.0%} of {len(test)} rows")

# %% [markdown]
# ## Where to go on
#
# - [questions.md](../../docs/questions.md): rows, templates, aliases, metrics, and the public benchmark of the form.
# - On the command line: `raft-peft train`, `predict`, `evaluate` and `calibrate` take such rows in files.
# - A server: `raft-peft serve tickets` ([server.md](../../docs/server.md)). For vLLM, merge it first
#   ([serving.md](../../docs/serving.md)).
# - One question alone: [03_llm_judge.ipynb](03_llm_judge.ipynb).

# %%
folder.cleanup()
