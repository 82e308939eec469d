"""A row of typed questions: a state, what is asked of it, and where they are known the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raft_peft.data.chats import without_nulls
from raft_peft.data.questions.question import CHOICE, Question
from raft_peft.data.questions.target import read_target, target_as_dict
from raft_peft.data.ratings import Ratings
from raft_peft.data.row_files import key_twice

STATE, QUESTIONS, TARGETS = "state", "questions", "targets"
# Where a row may hold JSON.
ROW_COLUMNS = (STATE, QUESTIONS, TARGETS)


@dataclass(frozen=True)
class QuestionRow:
    """A state and its questions.

    Attributes:
        state: a text; or what JSON can hold, such as an object or the messages of a chat.
        questions: in the order in which they are asked.
        targets: the ratings of each question that has a target, by its id, see [`read_target`].
    """

    state: Any
    questions: tuple[Question, ...]
    targets: Mapping[str, Ratings] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any], *, from_table: bool = False) -> QuestionRow:
        """Read a row.

        Args:
            row: `state`; `questions`, a mapping of ids to what [`Question.of`] reads; and where there are some
                `targets`, a mapping of ids to what [`read_target`] reads, in which None is no target. Other columns
                are left alone. Where `questions` is JSON text, as on the Hub, so may be `state` and `targets`; a state
                that is no JSON object, list or text is a text of its own then.
            from_table: whether the row comes from a table, which gives the keys of all rows' objects to each, with
                None.

        Raises:
            ValueError: it is no such row. The message names the question.
        """
        missing = next((name for name in (STATE, QUESTIONS) if row.get(name) is None), None)
        if missing is not None:
            raise ValueError(
                f"the row has no `{missing}`; its columns are {sorted(map(str, row))}. A row is {{'state': ..., "
                "'questions': {id: {'type', 'instructions', 'criteria'}}, 'targets': {id: ...}}."
            )
        state, questions, targets = (_plain(row.get(name)) for name in ROW_COLUMNS)
        if isinstance(questions, str):
            state, from_table = _state_of_json(state), False
            questions = _of_json(questions, QUESTIONS)
        targets = _of_json(targets, TARGETS) if isinstance(targets, str) else targets
        if from_table:
            _refuse_what_tables_hide(questions)
            state, questions = without_nulls(state), without_nulls(questions)
        read = _read_questions(questions)
        return cls(_checked_state(state), read, _read_targets(targets, read))

    def as_json(self) -> dict[str, str]:
        """The row as three columns of JSON text, from which it is read again as it is."""
        targets = {name: target_as_dict(one) for name, one in self.targets.items()}
        return {
            STATE: json.dumps(self.state, ensure_ascii=False),
            QUESTIONS: json.dumps({one.id: one.as_dict() for one in self.questions}, ensure_ascii=False),
            TARGETS: json.dumps(targets, ensure_ascii=False),
        }


def holds_questions(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of typed questions."""
    return row.get(QUESTIONS) is not None


def _read_questions(questions: Any) -> tuple[Question, ...]:
    if not isinstance(questions, Mapping):
        raise ValueError(
            f"its `questions` are {questions!r:.80}. Write {{id: {{'type', 'instructions', 'criteria'}}}}, with an id "
            "for each question."
        )
    asked = {name: raw for name, raw in questions.items() if raw is not None}
    if not asked:
        raise ValueError("its `questions` are empty. Ask one or more, or drop the row.")
    return tuple(Question.of(name, raw) for name, raw in asked.items())


def _read_targets(targets: Any, questions: tuple[Question, ...]) -> dict[str, Ratings]:
    if targets is None:
        return {}
    if not isinstance(targets, Mapping):
        raise ValueError(f"its `targets` are {targets!r:.80}. Write {{id: target}}, with the ids of its questions.")
    asked = {one.id: one for one in questions}
    found = {}
    for name, raw in targets.items():
        if raw is None or (isinstance(raw, Mapping) and raw and all(share is None for share in raw.values())):
            continue
        if name not in asked:
            ids = ", ".join(map(repr, asked))
            raise ValueError(f"it has a target for {name!r}, and asks {ids}. Rename one of them, or leave it out.")
        try:
            found[name] = read_target(asked[name], raw)
        except ValueError as error:
            raise ValueError(f"question {name!r}: {error}") from error
    return found


def _checked_state(state: Any) -> Any:
    if state is None or state == {} or state == [] or (isinstance(state, str) and not state.strip()):
        raise ValueError(f"its `state` is empty, {state!r}. Fill it, or drop the row.")
    try:
        json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"its `state` is {state!r:.80}, which JSON cannot hold: {error}. Write a text, or an object of texts, "
            "numbers, lists and objects."
        ) from None
    return state


def _state_of_json(state: Any) -> Any:
    if not isinstance(state, str):
        return state
    try:
        read = json.loads(state)
    except ValueError:
        return state
    return read if isinstance(read, str | list | dict) else state


def _of_json(text: str, column: str) -> Any:
    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = key_twice(pairs)
        if twice is not None:
            raise ValueError(f"the key {twice!r} stands twice in one object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=each_once)
    except ValueError as error:
        raise ValueError(f"its `{column}` are not JSON: {error}. Repair the text {text[:60]!r}.") from None


def _refuse_what_tables_hide(questions: Any) -> None:
    """Refuse options without a description in a table, of which some may be another row's."""
    for name, raw in (questions if isinstance(questions, Mapping) else {}).items():
        criteria = raw.get("criteria") if isinstance(raw, Mapping) and raw.get("type") == CHOICE else None
        if isinstance(criteria, Mapping) and any(text is None for text in criteria.values()):
            raise ValueError(
                f"question {name!r}: an option of its choice has no description in a table, which gives the options "
                "of every row to all rows in this way. Write `questions` as JSON text, json.dumps(questions), or pass "
                "a list of rows."
            )


def _plain(value: Any) -> Any:
    """A value without arrays, which cells of pandas and others hold."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
