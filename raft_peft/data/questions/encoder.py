"""From a row of questions to tokens: for each question its prompt, and the tokens of its labels behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raft_peft.data.chats import render_chat
from raft_peft.data.prompts import check_max_length, rows_error
from raft_peft.data.questions.question import NUMBER, Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.questions.template import QuestionTemplate
from raft_peft.data.ratings import Ratings
from raft_peft.data.thoughts import is_in_thought
from raft_peft.grid import NumberGrid
from raft_peft.grid.resolution import Context, GridResolver, ResolvedGrid, default_separator

_RESOLVERS_KEPT = 64
# As the servers do: a label is the first token of the reply, and not of a thought.
_WITHOUT_THOUGHTS = {"chat_template_kwargs": {"enable_thinking": False}}


@dataclass(frozen=True)
class EncodedQuestion:
    """A question about a state, ready for the model.

    Attributes:
        question: which is asked.
        input_ids: the prompt up to where the label begins. Those of one state begin alike.
        label_token_ids: for each option, for each text that stands for it, the tokens of this text; one token but for
            a number.
        target: its ratings, in the unit of `question.values`; None where it has no target.
        was_cut: whether the end of the state was cut off to fit `max_length`.
    """

    question: Question
    input_ids: list[int]
    label_token_ids: tuple[tuple[tuple[int, ...], ...], ...]
    target: Ratings | None
    was_cut: bool

    def columns(self) -> dict[str, Any]:
        """The question as a batch is made of it.

        Returns:
            `id`; `type`; `input_ids`; `grid_token_ids`, the tokens of each text; `option_of_text`, the place of the
            option that each stands for; `option_values`, the number of each option; and where there is a target
            `label`, its mean, `rating_values` and `rating_shares`.
        """
        texts = [(place, ids) for place, option in enumerate(self.label_token_ids) for ids in option]
        columns: dict[str, Any] = {
            "id": self.question.id,
            "type": self.question.type,
            "input_ids": self.input_ids,
            "grid_token_ids": [list(ids) for _, ids in texts],
            "option_of_text": [place for place, _ in texts],
            "option_values": list(self.question.values),
        }
        if self.target is not None:
            columns |= {
                "label": self.target.mean,
                "rating_values": list(self.target.values),
                "rating_shares": list(self.target.shares),
            }
        return columns


@dataclass(frozen=True)
class _Asked:
    """A question of a row, with the state as it is written."""

    row: int
    question: Question
    state: str


class QuestionEncoder:
    """Encodes rows of typed questions.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: what `QuestionTemplate.of` takes; by default the words of vLLM.
        max_length: the most tokens of a prompt. Where a row has a longer one, its state loses its end, as much for
            all its questions, which stay whole. None for no limit.
        processor: renders the chat where that is not the tokenizer's task (vision-language models).

    Raises:
        ValueError: the template is none, or needs a chat template that the tokenizer has not.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: QuestionTemplate | Any = None,
        *,
        max_length: int | None = None,
        processor: Any = None,
    ):
        check_max_length(max_length)
        self.tokenizer = tokenizer
        self.template = QuestionTemplate.of(template)
        self.max_length = max_length
        self.processor = tokenizer if processor is None else processor
        self._resolvers: dict[tuple[str, ...], GridResolver] = {}
        if self.template.chat and getattr(self.processor, "chat_template", None) is None:
            raise ValueError(
                "The tokenizer has no chat template, through which questions are asked. Use the instruction-tuned "
                "model's tokenizer, set `tokenizer.chat_template`, or ask without a chat: `question_template="
                "{'chat': False}`."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of, so that the pickle does not change with the questions that were encoded."""
        return _made_again, (self.tokenizer, self.template, self.max_length, self.processor)

    def encode(
        self, rows: Sequence[QuestionRow], first_row: int = 0, *, require_targets: bool = False
    ) -> list[list[EncodedQuestion]]:
        """Encode the questions of rows, for each row in their order.

        Args:
            rows: the rows.
            first_row: the number of the first of them in its dataset, for error messages.
            require_targets: whether only questions that have a target are encoded, and a row that has none is an
                error.

        Raises:
            ValueError: rows that cannot be encoded: no target, a label that is not one token, a chat template that
                refuses them, a state that leaves no room. The message names row, question and cure.
        """
        errors: list[tuple[int, str]] = []
        encoded: list[list[EncodedQuestion]] = []
        asked = [
            _Asked(number, question, self.template.state_text(row.state))
            for number, row in enumerate(rows, first_row)
            for question in row.questions
            if not require_targets or question.id in row.targets
        ]
        resolved = dict(zip([(one.row, one.question.id) for one in asked], self._resolve(asked), strict=True))
        for number, row in enumerate(rows, first_row):
            own = [one for one in row.questions if (number, one.id) in resolved]
            try:
                if not own:
                    ids = ", ".join(repr(one.id) for one in row.questions)
                    raise ValueError(f"no question of {ids} has a target. Fill `targets`, or drop the row.")
                found = [_raised(resolved[number, one.id]) for one in own]
                was_cut = self.max_length is not None and max(len(one.prompt_ids) for one in found) > self.max_length
                if was_cut:
                    found = self._cut(number, own, self.template.state_text(row.state), found)
            except ValueError as error:
                errors.append((number, str(error)))
                continue
            encoded.append(
                [
                    EncodedQuestion(
                        one, list(grid.prompt_ids), self._by_option(one, grid), row.targets.get(one.id), was_cut
                    )
                    for one, grid in zip(own, found, strict=True)
                ]
            )
        if errors:
            raise rows_error(errors)
        return encoded

    def _resolve(self, asked: Sequence[_Asked]) -> list[ResolvedGrid | ValueError]:
        """The prompt of each question and the tokens of the texts that stand for its options, or why it has none."""
        found: list[ResolvedGrid | ValueError] = [ValueError()] * len(asked)
        contexts: dict[int, Context] = {}
        alike = defaultdict(list)
        for place, one in enumerate(asked):
            try:
                contexts[place] = self._context(one)
            except ValueError as error:
                found[place] = _of_question(one.question, error)
                continue
            alike[self._texts(one.question)].append(place)
        for texts, places in alike.items():
            grids = self._resolver(texts).resolve([contexts[place] for place in places])
            for place, grid in zip(places, grids, strict=True):
                found[place] = self._checked(asked[place].question, texts, grid)
        return found

    def _context(self, asked: _Asked) -> Context:
        content = self.template.content(asked.state, asked.question)
        if not self.template.chat:
            text = content if self.template.system is None else f"{self.template.system}\n\n{content}"
            return Context(text, default_separator(text))
        messages = [{"role": "user", "content": content}]
        if self.template.system is not None:
            messages.insert(0, {"role": "system", "content": self.template.system})
        chat = render_chat(self.processor, messages, _WITHOUT_THOUGHTS)
        if is_in_thought(chat.text, content):
            raise ValueError(
                "the chat template opens a thought, although `enable_thinking` is false, so a label cannot be the "
                "first token of the reply. Set a chat template that does not think (`tokenizer.chat_template`)."
            )
        return Context(chat.text, "", add_special_tokens=False)

    def _texts(self, question: Question) -> tuple[str, ...]:
        return tuple(text for texts in self.template.label_texts(question) for text in texts)

    def _resolver(self, texts: tuple[str, ...]) -> GridResolver:
        """Finds the tokens of texts. Each of them is a number here, its place."""
        if texts not in self._resolvers:
            # Numbers may have any grid, in a server those of anybody's requests.
            if len(self._resolvers) >= _RESOLVERS_KEPT:
                self._resolvers.clear()
            self._resolvers[texts] = GridResolver(NumberGrid(dict(enumerate(texts))), self.tokenizer)
        return self._resolvers[texts]

    def _checked(
        self, question: Question, texts: tuple[str, ...], grid: ResolvedGrid | ValueError
    ) -> ResolvedGrid | ValueError:
        if isinstance(grid, ValueError):
            return _of_question(question, ValueError(f"its labels cannot be read. {grid}"))
        several = [(text, ids) for text, ids in zip(texts, grid.token_ids, strict=True) if len(ids) > 1]
        if question.type == NUMBER or not several:
            return grid
        text, ids = several[0]
        shown = self.tokenizer.convert_ids_to_tokens(list(ids))
        return _of_question(
            question,
            ValueError(
                f"its label {text!r} is the tokens {shown} behind the prompt, and must be one, the first of the "
                "reply. Leave it out of `aliases` where it is one of these; else use another tokenizer, or ask for a "
                "number, whose labels may be several tokens: the type 'number' with the criteria {0: 'a', 1: 'b'}."
            ),
        )

    def _by_option(self, question: Question, grid: ResolvedGrid) -> tuple[tuple[tuple[int, ...], ...], ...]:
        tokens = iter(grid.token_ids)
        return tuple(tuple(next(tokens) for _ in texts) for texts in self.template.label_texts(question))

    def _cut(
        self, row: int, questions: Sequence[Question], state: str, found: Sequence[ResolvedGrid]
    ) -> list[ResolvedGrid]:
        """The questions about as much of the state's beginning as fits together with the longest of them."""
        limit = self.max_length or 0
        ends = self._ends_of_tokens(state)
        keep = len(ends)
        while True:
            lengths = [len(grid.prompt_ids) for grid in found]
            excess = max(lengths) - limit
            if excess <= 0:
                return list(found)
            if keep <= excess:
                longest = questions[lengths.index(max(lengths))]
                raise ValueError(
                    f"question {longest.id!r}: {max(lengths) - keep} tokens stand around the state, which leaves it "
                    f"no room under `max_length={limit}`. Set it to more, or shorten the question."
                )
            keep -= excess
            shorter = state[: ends[keep - 1]]
            found = [_raised(one) for one in self._resolve([_Asked(row, one, shorter) for one in questions])]

    def _ends_of_tokens(self, state: str) -> list[int]:
        """Where each token of a state ends, in characters."""
        if getattr(self.tokenizer, "is_fast", False):
            offsets = self.tokenizer(state, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            return [end for _, end in offsets]
        ids = self.tokenizer(state, add_special_tokens=False)["input_ids"]
        return [len(self.tokenizer.decode(ids[:count])) for count in range(1, len(ids) + 1)]


def _made_again(tokenizer: Any, template: QuestionTemplate, max_length: int | None, processor: Any) -> QuestionEncoder:
    return QuestionEncoder(tokenizer, template, max_length=max_length, processor=processor)


def _of_question(question: Question, error: ValueError) -> ValueError:
    return ValueError(f"question {question.id!r}: {error}")


def _raised(grid: ResolvedGrid | ValueError) -> ResolvedGrid:
    if isinstance(grid, ValueError):
        raise grid
    return grid
