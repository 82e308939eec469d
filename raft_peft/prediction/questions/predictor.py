"""`AnsweringPredictor`: answers to typed questions, several about one text, with the text computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
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


@dataclass(frozen=True)
class ReadQuestion:
    """What was read for one question of a row.

    Attributes:
        question: as it was asked.
        log_probs: of its options over the whole vocabulary, of shape (options,).
    """

    question: Question
    log_probs: np.ndarray

    def answer(self) -> Answer:
        """The answer given the options."""
        log_probs = self.log_probs.astype(np.float64)
        probabilities = softmax(log_probs)
        value: float | str = float(probabilities @ np.array(self.question.values))
        if self.question.is_choice:
            value = self.question.names[int(probabilities.argmax())]
        return Answer(
            value, dict(zip(self.question.names, probabilities.tolist(), strict=True)), float(np.exp(log_probs).sum())
        )


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
        read = self.read_questions(
            [QuestionRow.of(row) for row in with_questions],
            batch_size,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )
        return [{one.question.id: one.answer() for one in row} for row in read]

    def read_questions(
        self,
        rows: Sequence[QuestionRow],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        show_progress: bool | None = None,
    ) -> list[list[ReadQuestion]]:
        """The probabilities of the options of each row's questions, in their order. Takes what `decide_rows` does.

        Raises:
            ValueError: a question that cannot be asked. The message names the row.
        """
        encoded = self._question_encoder.encode(rows)
        asked = [one for row in encoded for one in row]
        log_probs = iter(self._log_probs(asked, batch_size, batch_tokens, show_progress))
        return [[ReadQuestion(one.question, next(log_probs)) for one in row] for row in encoded]

    @cached_property
    def _question_encoder(self) -> QuestionEncoder:
        # Made where the first question is asked: without a chat template the tokenizer may be good for numbers alone.
        return QuestionEncoder(self.tokenizer, self.question_template, max_length=self._max_length)

    @cached_property
    def _answers(self) -> AnswerReadout:
        # However the model was trained, an answer is read off the probabilities.
        settings = MethodSettings(method="rail", attention=self.settings.attention)
        return AnswerReadout(self.model, self.tokenizer, settings)

    def _log_probs(
        self, prompts: Sequence[Any], batch_size: int, batch_tokens: int, show_progress: bool | None
    ) -> list[np.ndarray]:
        """Of the options of each question, float32, of shape (options,)."""
        if not prompts:
            return []
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
        found: list[np.ndarray] = []
        with tqdm(total=len(prompts), unit="question", disable=not show_progress) as progress:
            for some in chunks(prompts, 8192):
                distribution: Any = runner.run(some, progress.update).distribution
                found += [
                    # A batch has as many places as its question of the most options.
                    log_probs[: len(one.question.values)]
                    for one, log_probs in zip(some, distribution.log_probs.numpy(), strict=True)
                ]
        return found


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
