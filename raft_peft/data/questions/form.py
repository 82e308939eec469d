"""How rows ask typed questions: their own or those of a file, about a state of theirs or of a template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft_peft.data.prompt_template import PROMPT, PromptTemplate
from raft_peft.data.prompts import rows_error
from raft_peft.data.questions.columns import target_in_column
from raft_peft.data.questions.question import Question
from raft_peft.data.questions.row import QUESTIONS, STATE, TARGETS, QuestionRow
from raft_peft.data.row_files import TARGET_FORMATS
from raft_peft.data.row_sources import no_key_twice
from raft_peft.data.rows import each


@dataclass(frozen=True)
class QuestionForm:
    """Reads rows of typed questions, which may leave questions, states and targets to it.

    Attributes:
        questions: asked of each row that brings none, by their ids; None where each brings its own.
        template: writes the states; None where rows hold them.
        from_table: whether rows come from a table, as those of Parquet, see [`QuestionRow.of`].
    """

    questions: Mapping[str, Question] | None = None
    template: PromptTemplate | None = None
    from_table: bool = False

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> list[QuestionRow]:
        """The rows of a source with their targets.

        Args:
            rows: what [`each`] takes. A row holds a `state`, or the columns of the template; its `questions`, where it
                does not take those of the form; and `targets`, or columns with the ids of questions that hold them.

        Raises:
            ValueError: rows that cannot be read. The message names rows and questions.
        """
        found: list[QuestionRow] = []
        errors: list[tuple[int, str]] = []
        for number, row in enumerate(each(rows)):
            try:
                found.append(self._read(row, with_targets=True))
            except ValueError as error:
                errors.append((number, str(error)))
        if errors:
            raise rows_error(errors)
        return found

    def row(self, row: Mapping[str, Any], number: int, *, with_targets: bool) -> QuestionRow:
        """One row, see `rows`.

        Args:
            row: its columns.
            number: its own, for messages.
            with_targets: whether targets are read.
        """
        try:
            return self._read(row, with_targets=with_targets)
        except ValueError as error:
            raise rows_error([(number, str(error))]) from error

    def _read(self, row: Mapping[str, Any], *, with_targets: bool) -> QuestionRow:
        # In CSV what is missing is an empty text.
        own = row.get(QUESTIONS) not in (None, "")
        if not own and self.questions is None:
            raise ValueError(
                f"the row has no `{QUESTIONS}`, and none are known from training; its columns are {list(row)}. Pass "
                "`questions=questions.json`, a file of {id: {'type', 'instructions', 'criteria'}}."
            )
        asked = row[QUESTIONS] if own else self.questions
        targets = (row.get(TARGETS) or None) if with_targets else None
        if with_targets and targets is None and self.questions is not None and not own:
            targets = {name: target_in_column(row, one) for name, one in self.questions.items() if name in row}
        state = self._state(row)
        if isinstance(asked, str) and state is not row.get(STATE):
            # Beside questions in JSON text, a state is read as JSON where it is such.
            state = json.dumps(state)
        read = {STATE: state, QUESTIONS: asked, TARGETS: targets}
        return QuestionRow.of(read, from_table=self.from_table)

    def _state(self, row: Mapping[str, Any]) -> Any:
        if self.template is not None and set(self.template.columns) <= set(row):
            return self.template(row)
        if row.get(STATE) is not None:
            return row[STATE]
        if STATE in row:
            raise ValueError(f"the column `{STATE}` is empty. Fill it, or drop the row.")
        name, why = next(iter(row), "text"), ""
        nor = "" if self.template is None else f", nor the columns of the prompt template {self.template!r}"
        if PROMPT in row:
            name = PROMPT
            why = " A `prompt` is not taken for one unasked, since it may end in words that ask for a number."
        raise ValueError(
            f"the row has no `{STATE}`{nor}; its columns are {list(row)}.{why} Rename the column of the text to "
            f"`{STATE}`, or write the state from columns: `prompt_template='{{{name}}}'`."
        )


def read_questions(path: str | Path) -> dict[str, Question]:
    """The questions of a JSON file, by their ids.

    Args:
        path: a file that holds `{id: {"type": ..., "instructions": ..., "criteria": ...}}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or a question that cannot be asked. The message names the question.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} of questions.")
    form = 'Write {"ID": {"type": ..., "instructions": ..., "criteria": ...}}, with an id for each question.'
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_key_twice)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. {form}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} holds {'no question' if found == {} else f'{found!r:.60}'}. {form}")
    try:
        return {name: Question.of(name, raw) for name, raw in found.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_from_table(source: str | Path) -> bool:
    """Whether the rows of a source of [`read_rows`] have the keys of all rows, as in Parquet and on the Hub."""
    return Path(source).suffix not in TARGET_FORMATS
