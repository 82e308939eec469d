"""`AnsweringPredictor`: answers to typed questions, several about one text, with the text computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from tqdm.auto import tqdm

from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.collator import QuestionCollator
from raft_peft.data.questions.encoder import EncodedQuestion, QuestionEncoder
from raft_peft.data.questions.question import Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.questions.template import QuestionTemplate
from raft_peft.forward.cpu_precision import warn_where_bf16_is_emulated
from raft_peft.forward.memory import PartsThatFit
from raft_peft.forward.model import device_of
from raft_peft.methods import MethodSettings
from raft_peft.methods.answers import AnswerReadout
from raft_peft.prediction.batching import BatchRunner, autocast_dtype, chunks

Questions = Mapping[str, Mapping[str, Any]]


class AnsweringPredictor:
    """Answers typed questions with a language model, as it was trained or zero-shot.

    Args:
        model: a causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        settings: the method and its options.
        max_length: the most tokens of a state and a question; a longer state is cut. None for no limit.
        autocast: the dtype in which products are computed, whatever that of the weights: `"bfloat16"`, `"float16"`, or
            `"float32"` and None for that of the weights.
        questions: asked where `decide` is given none, by their ids.
        question_template: how questions are written, see [`QuestionTemplate`].
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: MethodSettings,
        max_length: int | None = None,
        autocast: str | torch.dtype | None = None,
        questions: Questions | None = None,
        question_template: Any = None,
    ):
        self.settings = settings
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.questions = questions
        self.question_template = QuestionTemplate.of(question_template)
        self._max_length = max_length
        self._parts = PartsThatFit()
        self._autocast = autocast_dtype(autocast)
        if self._autocast == torch.bfloat16 and device_of(model.get_input_embeddings()).type == "cpu":
            warn_where_bf16_is_emulated("Set `autocast='float32'`.")
        pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad_token_id = pad_token_id or 0

    def decide(self, state: Any, questions: Questions | None = None) -> dict[str, Answer]:
        """Answer typed questions about one text.

        ```python
        predictor = RegressionPredictor.from_pretrained("my-judge")
        answers = predictor.decide(
            "The parcel came two days late.",
            {"anger": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "annoyed", "furious"]}},
        )
        answers["anger"].value
        ```

        Args:
            state: a text, JSON, or the messages of a chat.
            questions: by their ids, see [`Question`]. By default those of training.

        Returns:
            An [`Answer`] for each id.

        Raises:
            ValueError: a question that cannot be asked, or none.
        """
        (answers,) = self.decide_rows([{"state": state}], questions=questions)
        return answers

    def decide_rows(
        self,
        rows: Iterable[Mapping[str, Any]],
        batch_size: int = 64,
        *,
        questions: Questions | None = None,
        batch_tokens: int = 4096,
        show_progress: bool | None = None,
    ) -> list[dict[str, Answer]]:
        """Answer the typed questions of rows. What several prompts begin with is computed once.

        Args:
            rows: each a `state`, and its `questions` where it does not take those of the call.
            batch_size: the most questions in a forward pass.
            questions: asked of each row that brings none, see `decide`.
            batch_tokens: the most tokens in a forward pass, with padding.
            show_progress: whether to show a progress bar; by default where there are more questions than a batch has.

        Raises:
            ValueError: as `decide`; the message names the row.
        """
        asked = self.questions if questions is None else questions
        with_questions = [_with_questions(dict(row), asked, number) for number, row in enumerate(rows)]
        encoded = self._question_encoder.encode([QuestionRow.of(row) for row in with_questions])
        return self._answered(encoded, batch_size, batch_tokens, show_progress)

    @cached_property
    def _question_encoder(self) -> QuestionEncoder:
        # Made where the first question is asked: without a chat template the tokenizer may be good for numbers alone.
        return QuestionEncoder(self.tokenizer, self.question_template, max_length=self._max_length)

    @cached_property
    def _answers(self) -> AnswerReadout:
        # However the model was trained, an answer is read off the probabilities.
        settings = MethodSettings(method="rail", attention=self.settings.attention)
        return AnswerReadout(self.model, self.tokenizer, settings)

    def _answered(
        self, encoded: Sequence[Sequence[Any]], batch_size: int, batch_tokens: int, show_progress: bool | None
    ) -> list[dict[str, Answer]]:
        prompts = [question for row in encoded for question in row]
        if not prompts:
            return [{} for _ in encoded]
        options = max(len(one.question.values) for one in prompts)
        runner = BatchRunner(
            model=self.model,
            readout=self._answers,
            collate=partial(_collate, QuestionCollator(pad_token_id=self._pad_token_id, options=options)),
            parts=self._parts,
            autocast=self._autocast,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
        )
        show_progress = len(prompts) > batch_size if show_progress is None else show_progress
        answers: list[Answer] = []
        with tqdm(total=len(prompts), unit="question", disable=not show_progress) as progress:
            for some in chunks(prompts, 8192):
                reading = runner.run(some, progress.update)
                distribution: Any = reading.distribution
                answers += [
                    _answer(one.question, log_probs)
                    for one, log_probs in zip(some, distribution.log_probs, strict=True)
                ]
        found = iter(answers)
        return [{question.question.id: next(found) for question in row} for row in encoded]


def _with_questions(row: dict[str, Any], asked: Questions | None, number: int) -> dict[str, Any]:
    if row.get("questions") is None:
        if asked is None:
            raise ValueError(
                f"Row {number} has no `questions`, and none are known from training. Pass `questions={{id: {{'type': "
                "'score', 'instructions': ..., 'criteria': [...]}}}`."
            )
        row["questions"] = asked
    return row


def _collate(collator: QuestionCollator, asked: Sequence[EncodedQuestion]) -> dict[str, torch.Tensor]:
    return collator([{name: [value] for name, value in one.columns().items()} for one in asked])


def _answer(question: Question, log_probs: torch.Tensor) -> Answer:
    own = log_probs[: len(question.values)].double()
    probabilities = own.softmax(-1)
    value: float | str = float(probabilities @ torch.tensor(question.values, dtype=torch.float64))
    if question.is_choice:
        value = question.names[int(probabilities.argmax())]
    return Answer(value, dict(zip(question.names, probabilities.tolist(), strict=True)), float(own.exp().sum()))
