"""How a state and a question are written for the model: in the words of vLLM, of SGLang, or in others."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from string import Formatter
from typing import Any

from raft_peft.data.questions.question import CHOICE, NUMBER, PREDICATE, SCORE, TYPES, Question
from raft_peft.grid import number_text

_FIELDS = {
    "prompt": ("state", "question"),
    "heading": ("instructions",),
    "predicate_heading": ("instructions",),
    "option": ("label", "option"),
    "described_option": ("label", "option", "description"),
    "described_side": ("label", "description"),
    "bare_side": ("label",),
}
_REPLIES = {
    CHOICE: "Answer with the letter of one option only.",
    PREDICATE: "Answer with yes or no only.",
    SCORE: "Answer with the number of one level only.",
    NUMBER: "Answer with a number from {low} to {high} only.",
}


@dataclass(frozen=True)
class QuestionTemplate:
    r"""Writes the message of the user that asks a question about a state.

    By default it is in the words of vLLM (0.33, `/v1/systemone`), so that a server of vLLM asks the model what it was
    trained on: the state, an empty line, the question, a line for each option with its label, and a line that asks
    for a label. The labels are 0 to 9 for levels, yes and no, and A to Z for options. Behind the chat template's
    generation prompt, with thinking off, the label is the first token of the reply.

    Attributes:
        prompt: the message, with `{state}` before `{question}`.
        heading: the first line of a question, with `{instructions}`; it is left out where there are none.
        predicate_heading: the same, of a question of yes and no.
        option: the line of an option or level, with `{label}` and `{option}`.
        described_option: the same with `{description}`, where there is one.
        described_side: the line of yes or no, with `{label}` and `{description}`, where there is one.
        bare_side: the same, where there is none; empty for no line.
        replies: the last line, for each type; of a number with `{low}` and `{high}`, the ends of its grid.
        compact_json: whether a state that is no text is written as JSON without spaces.
        system: a system message before it; what a request to vLLM calls `instructions`.
        chat: whether it goes through the tokenizer's chat template. Without, the message is the prompt, and a label
            follows behind a space, for models that know no chat.
        aliases: other ways to write a label, such as `{"yes": ["Yes"]}`, whose probabilities are added to its own.
            Servers do not read them by default.

    Raises:
        ValueError: a text lacks a name in braces, or has another; the state does not come first.
    """

    prompt: str = "{state}\n\n{question}"
    heading: str = "Question: {instructions}"
    predicate_heading: str = "Question: {instructions}"
    option: str = "{label}: {option}"
    described_option: str = "{label}: {option} - {description}"
    described_side: str = "{label}: {description}"
    bare_side: str = "{label}"
    replies: Mapping[str, str] = field(default_factory=lambda: dict(_REPLIES))
    compact_json: bool = False
    system: str | None = None
    chat: bool = True
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, expected in _FIELDS.items():
            text = getattr(self, name)
            if name == "bare_side" and not text:
                continue
            _check_names(name, text, expected)
        if _names_in("prompt", self.prompt)[0] != "state":
            raise ValueError(
                f"`prompt` of the question template is {self.prompt!r}. Put {{state}} before {{question}}, so that "
                "all questions about a state begin alike."
            )
        unknown = sorted(set(self.replies) - set(TYPES))
        if unknown:
            raise ValueError(f"`replies` of the question template has the types {unknown}. Use {', '.join(TYPES)}.")
        object.__setattr__(self, "replies", {**_REPLIES, **self.replies})
        if not set(_names_in("replies", self.replies[NUMBER])) <= {"low", "high"}:
            raise ValueError(
                f"The reply of the type 'number' is {self.replies[NUMBER]!r} in the question template. It takes "
                "{low} and {high}; write other braces twice, as {{ and }}."
            )
        object.__setattr__(self, "aliases", _checked_aliases(self.aliases))

    @classmethod
    def of(cls, template: QuestionTemplate | Mapping[str, Any] | str | None) -> QuestionTemplate:
        """The template that a setting asks for.

        Args:
            template: None or `"vllm"`, `"sglang"`, a mapping of the attributes that differ from vLLM's, also as the
                text of a JSON object, or a template.

        Raises:
            ValueError: it is none of these.
        """
        if template is None:
            return VLLM
        if isinstance(template, QuestionTemplate):
            return template
        if isinstance(template, str) and template.lstrip().startswith("{"):
            template = _mapping_of(template)
        if isinstance(template, str):
            if template not in _BY_NAME:
                raise ValueError(
                    f"There is no question template {template!r}. Use one of {', '.join(_BY_NAME)}, or a mapping of "
                    "what differs from vllm, such as {'heading': 'Asked: {instructions}'}."
                )
            return _BY_NAME[template]
        if not isinstance(template, Mapping):
            raise ValueError(f"The question template is {template!r:.80}. Use a name or a mapping.")
        known = {one.name for one in fields(cls)}
        unknown = sorted(str(name) for name in template if name not in known)
        if unknown:
            raise ValueError(f"The question template has {unknown}. Use {', '.join(sorted(known))}.")
        return cls(**template)

    def as_setting(self) -> str | dict[str, Any]:
        """What `QuestionTemplate.of` makes it from, as JSON can hold it."""
        for name, one in _BY_NAME.items():
            if one == self:
                return name
        default, own = asdict(VLLM), asdict(self)
        own["aliases"] = {label: list(texts) for label, texts in self.aliases.items()}
        return {name: value for name, value in own.items() if value != default[name]}

    def state_text(self, state: Any) -> str:
        """A state as text."""
        if isinstance(state, str):
            return state
        return json.dumps(state, ensure_ascii=False, separators=(",", ":") if self.compact_json else None)

    def question_text(self, question: Question) -> str:
        """A question as text: its heading, its options and the line that asks for a label."""
        heading = self.predicate_heading if question.type == PREDICATE else self.heading
        lines = [heading.format(instructions=question.instructions)] if question.instructions else []
        if question.type != NUMBER:
            lines += [
                line
                for label, option in zip(labels_of(question), question.options, strict=True)
                if (line := self._line(question, label, option.name, option.description))
            ]
        low, high = min(question.values), max(question.values)
        ends = {"low": number_text(low), "high": number_text(high)} if question.type == NUMBER else {}
        reply = self.replies[question.type]
        return "\n".join([*lines, reply.format(**ends) if ends else reply])

    def content(self, state: str, question: Question) -> str:
        """The message of the user.

        Args:
            state: as `state_text` writes it.
            question: which is asked.
        """
        return self.prompt.format(state=state, question=self.question_text(question))

    def label_texts(self, question: Question) -> tuple[tuple[str, ...], ...]:
        """For each option the texts that stand for it: its label, and the label's aliases."""
        return tuple((label, *self.aliases.get(label, ())) for label in labels_of(question))

    def _line(self, question: Question, label: str, name: str, description: str | None) -> str:
        if question.type == PREDICATE:
            return (
                self.described_side.format(label=label, description=description)
                if description
                else self.bare_side.format(label=label)
            )
        if description:
            return self.described_option.format(label=label, option=name, description=description)
        return self.option.format(label=label, option=name)


def labels_of(question: Question) -> tuple[str, ...]:
    """What each option is answered with: a level's place, yes or no, an option's letter, or a number's text."""
    if question.type == SCORE:
        return tuple(string.digits[: len(question.options)])
    return tuple(string.ascii_uppercase[: len(question.options)]) if question.is_choice else question.names


def _mapping_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"The question template {text!r:.200} begins like a JSON object, but is not one: {error}."
        ) from None


def _check_names(name: str, text: Any, expected: Sequence[str]) -> None:
    if sorted(_names_in(name, text)) != sorted(expected):
        shown = " and ".join(f"{{{one}}}" for one in expected)
        raise ValueError(
            f"`{name}` of the question template is {text!r:.80}. It takes {shown}, each once; write other braces "
            "twice, as {{ and }}."
        )


def _names_in(name: str, text: Any) -> list[str]:
    """The names in braces of a text, in their order."""
    try:
        return [one for _, one, _, _ in Formatter().parse(text) if one is not None]
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{name}` of the question template is {text!r:.80}: {error}. Write a text.") from None


def _checked_aliases(aliases: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(aliases, Mapping) or any(isinstance(texts, str) for texts in aliases.values()):
        raise ValueError(
            f"`aliases` of the question template are {aliases!r:.80}. Write lists of texts, {{'yes': ['Yes']}}."
        )
    checked = {label: tuple(texts) for label, texts in aliases.items()}
    every = [text for label, texts in checked.items() for text in (label, *texts)]
    if any(not isinstance(text, str) or not text for text in every) or len(set(every)) < len(every):
        raise ValueError(
            f"`aliases` of the question template are {aliases!r:.80}. Each label and each alias is a text that stands "
            "there once."
        )
    return checked


VLLM = QuestionTemplate()
# SGLang (0.5.23, /v1/decisions) asks whether something is true, and shows yes and no only where they are described.
SGLANG = replace(VLLM, predicate_heading="Is the following true? {instructions}", bare_side="", compact_json=True)
_BY_NAME = {"vllm": VLLM, "sglang": SGLANG}
