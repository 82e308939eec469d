"""The datasets of a run on typed questions, each encoded once, and what is saved of its questions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset

from raft_peft.data.dataset import spread_rows
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.questions.collator import id_number
from raft_peft.data.questions.dataset import encode_question_dataset
from raft_peft.data.questions.encoder import QuestionEncoder
from raft_peft.data.questions.row import QUESTIONS, STATE, QuestionRow
from raft_peft.data.questions.template import QuestionTemplate
from raft_peft.data.reasoning.reasonings import REASONING
from raft_peft.grid import NumberGrid
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.datasets import AnyDataset, RunDatasets

QUESTION_COLUMNS = [
    *("id", "type", "input_ids", "grid_token_ids", "option_of_text", "option_values"),
    *("label", "rating_values", "rating_shares", "weight"),
]
_ROWS_COMPARED = 64
# Settings of rows with one number.
_OF_FORM = ("chat", "system", "separator")
_OF_NUMBERS = (*_OF_FORM, "label_column", "weight_by_ratings", "log_predictions")


def refuse_settings_of_numbers(args: RegressionAwareConfig) -> None:
    """Raise a ValueError for a setting that is for rows with one number."""
    for name in _OF_NUMBERS:
        value = getattr(args, name)
        if value != args.__dataclass_fields__[name].default:
            form = "; `question_template` says how questions are written" if name in _OF_FORM else ""
            raise ValueError(
                f"`{name}={value!r}` is for rows of `prompt` and `label`, and these rows have typed `questions`. "
                f"Leave it out{form}."
            )


class QuestionDatasets(RunDatasets):
    """Encodes the rows of typed questions.

    Attributes:
        questions: the id and the type of each question that was encoded, by the number of its id.
        most_questions: the most questions of a row.
        most_options: the most options of a question.

    Raises:
        ValueError: a setting that is for rows with one number.
    """

    columns = QUESTION_COLUMNS
    encoder: QuestionEncoder  # type: ignore[assignment]

    def __init__(self, args: RegressionAwareConfig):
        refuse_settings_of_numbers(args)
        super().__init__(NumberGrid([0, 1]), args)
        self.stand_in = Dataset.from_dict(
            {"input_ids": [[[0]]], "grid_token_ids": [[[[0]]]], "option_values": [[[0.0, 1.0]]]}
        )
        self._encoded_here.add(self.stand_in)
        self.question_template = QuestionTemplate.of(args.question_template)
        self.questions: dict[int, tuple[str, str]] = {}
        self.most_questions = self.most_options = 1
        self.question_weights = _weights(args.question_weights)
        self._asked: dict[str, dict[str, Any]] = {}

    def open(self, tokenizer: Any, processing_class: Any) -> None:
        if not hasattr(self, "encoder"):
            self.encoder = QuestionEncoder(
                tokenizer, self.question_template, max_length=self._args.max_length, processor=processing_class
            )

    def encode(self, dataset: AnyDataset, name: str, *, require_label: bool = True) -> AnyDataset:
        if isinstance(dataset, Dataset | IterableDataset) and dataset in self._encoded_here:
            return dataset
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"The {name} dataset is a stream (IterableDataset), of which it is not known what it asks. Read it "
                f"into a dataset first: Dataset.from_list(list({name}_stream))."
            )
        if REASONING in dataset.column_names and any(one is not None for one in dataset[REASONING]):
            raise ValueError(
                f"The {name} dataset has a column `{REASONING}` beside its typed questions, and reasonings stand "
                "before one number. Leave the column out, or make rows of `prompt`, `reasoning` and `label`."
            )
        if self.template is not None and STATE not in dataset.column_names:
            dataset = _with_states(dataset, self.template, name)
        with self._args.main_process_first(desc=f"tokenizing the {name} dataset"):
            encoded = encode_question_dataset(
                dataset,
                name,
                self.encoder,
                require_targets=require_label,
                num_proc=self._args.dataset_num_proc,
                limits=self._limits,
            )
        self._encoded_here.add(encoded)
        self._note(encoded)
        if name == "train":
            self._asked = _same_in_all(spread_rows(dataset, _ROWS_COMPARED))
            unknown = sorted(set(self.question_weights or ()) - {one for one, _ in self.questions.values()})
            if unknown:
                raise ValueError(
                    f"`question_weights` has a weight for {unknown[0]!r}, and the train dataset has no such question. "
                    f"Its questions are {', '.join(sorted(one for one, _ in self.questions.values()))[:300]}."
                )
        return encoded

    def _note(self, encoded: Dataset) -> None:
        columns = encoded.with_format(None)
        for ids, types, values in zip(columns["id"], columns["type"], columns["option_values"], strict=True):
            self.most_questions = max(self.most_questions, len(ids))
            self.most_options = max(self.most_options, *map(len, values))
            for question_id, kind in zip(ids, types, strict=True):
                known = self.questions.setdefault(id_number(question_id), (question_id, kind))
                if known != (question_id, kind):
                    raise ValueError(
                        f"The question {question_id!r} is a {kind}, and {known[0]!r} was a {known[1]}: a question "
                        "keeps its type in all rows. Give one of them another id."
                    )

    def saved(self) -> dict[str, Any]:
        """What `raft_config.json` keeps of the questions."""
        return {"questions": self._asked or None, "question_template": self.question_template.as_setting()}


def _with_states(dataset: Dataset, template: PromptTemplate, name: str) -> Dataset:
    try:
        return dataset.map(partial(_with_state, template), with_indices=True)
    except ValueError as error:
        raise ValueError(f"The {name} dataset cannot be used. {error}") from error


def _with_state(template: PromptTemplate, row: Mapping[str, Any], number: int) -> dict[str, Any]:
    state = template(row, number)
    # Beside questions in JSON text, a state is read as JSON where it is such.
    return {STATE: json.dumps(state) if isinstance(row[QUESTIONS], str) else state}


def _same_in_all(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The questions that are asked in the same words in all of these rows, by their ids."""
    asked = [{one.id: one.as_dict() for one in QuestionRow.of(row).questions} for row in rows]
    return {name: one for name, one in asked[0].items() if all(others.get(name) == one for others in asked)}


def _weights(setting: dict | str | None) -> dict[str, float] | None:
    """The weights of questions by their ids, of a dict or its JSON."""
    form = 'Write a number for each id, as {"tone": 2}.'
    try:
        weights = json.loads(setting) if isinstance(setting, str) else setting
    except ValueError as error:
        raise ValueError(f"`question_weights` is {setting!r:.80}, which is not JSON: {error}. {form}") from None
    if weights is not None and not isinstance(weights, dict):
        raise ValueError(f"`question_weights` is {weights!r:.80}. {form}")
    for name, weight in (weights or {}).items():
        if not isinstance(weight, int | float) or not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"`question_weights` gives {name!r} the weight {weight!r}. Use a number above 0.")
    return weights
