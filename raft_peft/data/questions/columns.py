"""Questions out of columns: a table with several numbers a row, such as the traits of an essay, without the form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from raft_peft.data.labels import as_number
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.prompts import rows_error
from raft_peft.data.questions.question import CHOICE, PREDICATE, Question
from raft_peft.data.questions.row import QUESTIONS, STATE, TARGETS, QuestionRow
from raft_peft.data.rows import each, features_of

_COLUMN = "{column}"


def questions_from_columns(
    rows: Any,
    columns: Sequence[str] | Mapping[str, Any],
    *,
    prompt: str | Sequence[Mapping[str, str]],
    question: Mapping[str, Any] | None = None,
) -> Dataset:
    """Rows with a column for each target as rows of typed questions.

    >>> rows = [{"text": "What a day!", "valence": 4.2, "arousal": 3.9}]
    >>> asked = {"type": "number", "instructions": "How high is the {column}?", "criteria": [1, 2, 3, 4, 5]}
    >>> made = questions_from_columns(rows, ["valence", "arousal"], prompt="{text}", question=asked)
    >>> made.column_names, made[0]["state"]
    (['state', 'questions', 'targets'], '"What a day!"')

    Args:
        rows: a dataset, a data frame, or a list of rows.
        columns: the columns of the targets, each with its question, as [`Question.of`] takes it; or their names alone,
            with `question`. A cell that is None has no target. Of a column of classes the names are read.
        prompt: the state, as a text with the names of columns in braces, or as messages of such texts.
        question: the question of every column, whose instructions may hold `{column}`.

    Returns:
        A dataset of `state`, `questions` and `targets`, as JSON text.

    Raises:
        ValueError: there is no such column, a question or a target cannot be read, or there is no row.
    """
    questions = _questions(columns, question)
    template, classes = PromptTemplate(prompt), features_of(rows)
    made: list[dict[str, str]] = []
    errors: list[tuple[int, str]] = []
    for number, row in enumerate(each(rows)):
        try:
            targets = {one.id: target_in_column(row, one, classes.get(one.id)) for one in questions}
            state = template(row)
            asked = {one.id: one for one in questions}
            made.append(QuestionRow.of({STATE: state, QUESTIONS: asked, TARGETS: targets}).as_json())
        except ValueError as error:
            errors.append((number, str(error)))
    if errors:
        raise rows_error(errors)
    if not made:
        raise ValueError("There are no rows to make questions of. Pass one row or more.")
    return Dataset.from_list(made)


def _questions(columns: Sequence[str] | Mapping[str, Any], question: Mapping[str, Any] | None) -> list[Question]:
    if isinstance(columns, str) or not columns:
        raise ValueError(f"`columns` is {columns!r}. Write a list of names, or a mapping of names to their questions.")
    if isinstance(columns, Mapping):
        if question is not None:
            raise ValueError("`columns` has a question for each column, and there is `question` too. Leave one out.")
        return [Question.of(name, raw) for name, raw in columns.items()]
    if question is None:
        raise ValueError(
            "`columns` are names alone. Set `question`, which is asked for each: {'type': 'number', 'instructions': "
            "'How high is the {column}?', 'criteria': [1, 2, 3, 4, 5]}."
        )
    twice = next((name for name in columns if list(columns).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"`columns` has {twice!r} twice. Name each column once.")
    instructions = str(question.get("instructions") or "")
    return [
        Question.of(name, {**question, "instructions": instructions.replace(_COLUMN, str(name))}) for name in columns
    ]


def target_in_column(row: Mapping[str, Any], question: Question, kind: Any = None) -> Any:
    """The target that a row holds for a question in a column of its id, as [`read_target`] takes it; None for none.

    Args:
        row: its columns.
        question: which was asked.
        kind: the type of the column in a dataset, where it is known.

    Raises:
        ValueError: there is no such column.
    """
    if question.id not in row:
        raise ValueError(
            f"the row has the columns {sorted(map(str, row))}, and no {question.id!r}. Name a column in `columns`."
        )
    value = row[question.id]
    if isinstance(kind, ClassLabel) and isinstance(value, int):
        # Classes that are kept secret are marked by -1.
        value = kind.int2str(value) if value >= 0 else None
    # All is text in CSV.
    return _of_text(value, question) if isinstance(value, str) and value not in question.names else value


def _of_text(text: str, question: Question) -> Any:
    """A target that is text and no name: a number, a truth value, or ratings or shares as JSON."""
    if not text.strip():
        return None
    if question.type == PREDICATE and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if question.type != CHOICE and (number := as_number(text)) is not None:
        return number
    try:
        read = json.loads(text)
    except ValueError:
        return text
    return read if isinstance(read, list | dict) else text
