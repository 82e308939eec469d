"""The tables of docs/results.md: the question of each, its rows, and the comparison that answers it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SMOLLM2, GEMMA3 = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"

# The settings that name the user's files.
_FILES = ("task_path", "train_file", "eval_file", "test_file")

_COMMON: Mapping[str, Any] = {
    "recipe": "lora",
    "per_device_train_batch_size": 8,
    "max_eval_samples": 500,
    "seeds": 3,
    "baseline": "sequence_classification",
}
# Few rows and steps, one seed and one learning rate. A table made so shows that everything works, and nothing more.
_QUICK: Mapping[str, Any] = {
    "quick": True,
    "max_steps": 4,
    "eval_steps": 4,
    "per_device_train_batch_size": 4,
    "max_eval_samples": 8,
    "max_test_samples": 16,
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page.

    Attributes:
        name: of its JSON file, and of the option `--only`.
        title: its heading.
        about: its question, and what must be known to read it.
        rows: the settings of a comparison that name the rows; a file or folder is named within the user's folder.
        settings: its other settings, where they differ from those of most tables.
        model: name of the language model.
        epochs: passes over the training rows, from which the steps follow; None for the steps of `settings`.
        validations: how often each run is validated, after equal numbers of steps.
        quick: what replaces settings where all is to be quick.
        folder: of the runs, which tables on the same rows and by the same recipe may share; by default its own.
        references: what is computed from the rows themselves: `vader`, `rater`.
        published: lines of other works, as metrics by their labels.
        paper: the dataset whose figures in the paper are given beside ours, as the key of a suite's `figures`.
        pictures: what is drawn: the validation RMSE over `steps`, the RMSE of the test over training `rows`.
    """

    name: str
    title: str
    about: str
    rows: Mapping[str, Any]
    settings: Mapping[str, Any]
    model: str = SMOLLM2
    epochs: int | None = 3
    validations: int = 9
    quick: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    references: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    paper: str | None = None
    pictures: tuple[str, ...] = ()

    def options(self, data: str, *, train_rows: int = 1, quick: bool = False) -> dict[str, Any]:
        """The settings of its comparison, but for the model, the folder and the device.

        Args:
            data: the user's folder.
            train_rows: rows to train on, for the number of steps.
            quick: whether everything is to be small.
        """
        rows = {name: f"{data}/{value}" if name in _FILES else value for name, value in self.rows.items()}
        options = {**_COMMON, **rows, **self.settings}
        if quick:
            return {**options, "learning_rates": None, "seeds": 1, **_QUICK, **self.quick}
        if self.epochs is not None:
            batch = options["per_device_train_batch_size"] * options.get("gradient_accumulation_steps", 1)
            options["max_steps"] = self.epochs * math.ceil(train_rows / batch)
        return {**options, "eval_steps": math.ceil(options["max_steps"] / self.validations)}


_STSB = (
    "rail;ce;special_token;sequence_classification;raft;raft:grid=0..5:distribution_loss=soft_ce;"
    "raft:attention=bidirectional"
)
_ON_RATINGS = "rail,sequence_classification,raft,raft:distribution_loss=soft_ce"


def _stsb(name: str, model: str) -> Table:
    return Table(
        name=name,
        title=f"STS-B, {model.partition('/')[2]}",
        about="Which method wins on the whole dataset, trained for three epochs, each at its best learning rate? The "
        "rows are split as in the paper. The grid is the paper's, 1 to 5; what is off it counts as 0. `soft_ce` is "
        "not defined beyond its grid and has 0 to 5.",
        rows={"task": "stsb", "task_path": "stsb"},
        settings={"methods": _STSB, "decisions": "mean,median"},
        model=model,
        pictures=("steps",),
        published={"RoBERTa-base, all 110M weights trained (the paper's Table 12)": {"rmse": 0.64, "pearson": 0.9084}},
    )


def _sentiment(name: str, title: str, files: Mapping[str, str], **others: Any) -> Table:
    return Table(
        name=name,
        title=title,
        about="Is a language model better than the rules that were written for this, and does it reach one human "
        "rater? The label is the mean of the ratings, from -4 to 4.",
        rows={
            **{option: f"sentiment/{name}/{file}" for option, file in files.items()},
            "prompt_template": "Text: {text} Sentiment from -4 (most negative) to 4 (most positive):",
            "label_column": "ratings",
            "grid": "-4..4",
        },
        settings={"methods": _ON_RATINGS, "decisions": "mean,median"},
        references=("vader", "rater"),
        **others,
    )


_THREE_FILES = {"train_file": "train.jsonl", "eval_file": "validation.jsonl", "test_file": "test.jsonl"}
# Without a test file the published figure is that of the validation rows. Some training rows are held out in their
# place.
_TWO_FILES = {"train_file": "train.jsonl", "test_file": "validation.jsonl"}


def _emobank(quantity: str, ends: str) -> Table:
    return Table(
        name=f"emobank_{quantity}",
        title=f"EmoBank, {quantity}",
        about=f"The {quantity} of a sentence, from 1 to 5. The label is the published mean.",
        rows={
            **{option: f"emobank/{file}" for option, file in _TWO_FILES.items()},
            "prompt_template": f"Text: {{text}} {quantity.capitalize()} {ends}:",
            "label_column": quantity,
            "grid": "1..5",
        },
        settings={"methods": _ON_RATINGS},
        epochs=2,
    )


def _of_the_paper(number: int, about: str, baseline: str, **others: Any) -> Table:
    return Table(
        name=f"table{number}",
        title=f"The paper's Table {number}, on 1,000 pairs of STS-B",
        about=about,
        rows={"task": "stsb_1k", "task_path": "stsb"},
        **{"settings": {"suite": f"table{number}", "baseline": baseline}, "folder": "stsb_1k", **others},
    )


TABLES = {
    table.name: table
    for table in (
        _stsb("stsb_smollm2", SMOLLM2),
        _sentiment(
            "tweets",
            "Sentiment of tweets",
            _TWO_FILES,
            published={
                "one human rater, as published (ICWSM 2014)": {"pearson": 0.888},
                "VADER rules, as published (ICWSM 2014)": {"pearson": 0.881},
            },
        ),
        _sentiment("product_reviews", "Sentiment of product reviews", _THREE_FILES),
        Table(
            name="learning_curves",
            title="Learning curves on STS-B",
            about="Where does each method win as training rows grow, and does RAFT start better and need fewer steps "
            "(the paper's Figures 4 and 5)? Every run has the same number of steps, so few rows are seen often.",
            rows={"task": "stsb", "task_path": "stsb"},
            settings={
                "methods": "ce,sequence_classification,raft",
                "train_sizes": "100,300,1000,all",
                "max_steps": 600,
            },
            epochs=None,
            validations=12,
            quick={"train_sizes": "16,all"},
            pictures=("rows", "steps"),
        ),
        _of_the_paper(13, "RAFT over grids of other numbers. The paper has it on Amazon reviews.", "raft:grid=1..5"),
        _of_the_paper(
            14,
            "RAFT over other texts of the numbers: letters, reversed digits, months. The paper has it on Amazon "
            "reviews.",
            "raft:grid=1..5",
        ),
        _of_the_paper(16, "RAFT with and without renormalizing.", "raft", paper="stsb"),
        _of_the_paper(
            18,
            "RAFT where the rows of the grid's tokens start at random. All weights are trained, since LoRA would "
            "leave these rows as they are.",
            "raft:grid=1..5",
            settings={"suite": "table18", "baseline": "raft:grid=1..5", "recipe": "full"},
            folder=None,
            paper="stsb",
        ),
        Table(
            name="judge",
            title="Scores of a judge",
            about="Does a small model repeat the scores of a large one, from 240 rows? The label is the mean of three "
            "scores, from 1 to 5.",
            rows={
                "train_file": "judge/train.jsonl",
                "test_file": "judge/test.jsonl",
                "prompt_template": "Instruction: {instruction}\n\nResponse: {response}\n\nReference answer: "
                "{reference}\n\nRubric: {rubric}\n\nScore of the response from 1 to 5:",
                "label_column": "ratings",
                "grid": "1..5",
            },
            settings={
                "methods": _ON_RATINGS,
                "max_length": 2048,
                # Its prompts have 800 tokens. Padded to like length, eight of them take too much memory.
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 4,
                "eval_batch_size": 4,
                "attn_implementation": "sdpa",
            },
            epochs=5,
            quick={"per_device_train_batch_size": 1, "max_steps": 2, "eval_steps": 2, "max_test_samples": 8},
            references=("rater",),
        ),
        _sentiment("movie_reviews", "Sentiment of movie reviews", _THREE_FILES),
        _emobank("valence", "from 1 (very negative) to 5 (very positive)"),
        _emobank("arousal", "from 1 (very calm) to 5 (very excited)"),
        _emobank("dominance", "from 1 (controlled by others) to 5 (in control)"),
        _stsb("stsb_gemma3", GEMMA3),
    )
}
