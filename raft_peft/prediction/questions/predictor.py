"""`AnsweringPredictor`: answers to typed questions by a model here, several about one text, computed once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from raft_peft.data.limits import ModelLimits
from raft_peft.data.questions.collator import QuestionCollator
from raft_peft.data.questions.encoder import EncodedQuestion, QuestionEncoder
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.questions.template import QuestionTemplate
from raft_peft.forward.cpu_precision import warn_where_bf16_is_emulated
from raft_peft.forward.memory import PartsThatFit
from raft_peft.forward.model import device_of
from raft_peft.messages import warn
from raft_peft.methods import MethodSettings
from raft_peft.methods.answers import AnswerReadout
from raft_peft.prediction.batching import BatchRunner, autocast_dtype, chunks
from raft_peft.prediction.calibrating.fitting import check_kinds, usual_kind
from raft_peft.prediction.calibrating.weights import calibrated_weights, usable_calibration
from raft_peft.prediction.questions.answering import Answering, Questions, ReadQuestion
from raft_peft.prediction.questions.calibrating import calibration_of_answers, rows_to_calibrate_on
from raft_peft.prediction.questions.calibration import CALIBRATE, QuestionCalibration

logger = logging.getLogger(__name__)


class AnsweringPredictor(Answering):
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

    questions: Questions | None = None
    question_calibration: QuestionCalibration | None = None

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
        self._said_cut = False
        self._parts = PartsThatFit()
        self._autocast = autocast_dtype(autocast)
        if self._autocast == torch.bfloat16 and device_of(model.get_input_embeddings()).type == "cpu":
            warn_where_bf16_is_emulated("Set `autocast='float32'`.")
        pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad_token_id = pad_token_id or 0

    def calibrate_questions(
        self,
        rows: Iterable[Any],
        batch_size: int = 64,
        *,
        questions: Questions | None = None,
        intervals: str | None = None,
        batch_tokens: int = 4096,
        show_progress: bool | None = None,
    ) -> QuestionCalibration:
        """Learn from held-out rows how far the answers to each question err, for `decide(..., interval=0.9)`.

        ```python
        predictor.calibrate_questions(rows).save("my-judge")
        ```

        `from_pretrained` reads the calibration of a folder again. A question is calibrated on the rows that have a
        target for it. One that is asked in other words in other rows is left out, with a warning.

        Args:
            rows: as `decide_rows` takes them, with `targets`; neither those of training nor those by which a
                checkpoint was chosen.
            questions: asked of each row that brings none, see `decide`.
            intervals: of scores and numbers: `"adaptive"`, whose width follows the distribution, `"quantiles"` of it,
                or `"constant"`. By default adaptive after training by a proper loss of the distribution, as questions
                are by default, else constant.
            batch_size, batch_tokens, show_progress: as in `decide_rows`.

        Raises:
            ValueError: rows that cannot be read; no row has a target; or no question is asked alike in all rows.
        """
        check_kinds(intervals, None, numbers=2)
        asked = rows_to_calibrate_on(self._rows(rows, questions))
        read = self.read_questions(asked, batch_size, batch_tokens=batch_tokens, show_progress=show_progress)
        log_probs = [[one.log_probs for one in row] for row in read]
        kind = intervals or usual_kind(self.settings)
        self.question_calibration = calibration_of_answers(asked, log_probs, self._question_settings(), kind=kind)
        return self.question_calibration

    def calibrated_questions(self) -> QuestionCalibration:
        """The calibration of questions, where there is one for the way in which they are read.

        Raises:
            ValueError: there is none, or it was made for other settings or weights.
        """
        return usable_calibration(self.question_calibration, self._question_settings(), CALIBRATE)

    def _question_settings(self) -> dict[str, Any]:
        """What answers depend on: how questions are written, and the weights. No head has a part in them."""
        return {
            "question_template": self.question_template.as_setting(),
            "max_length": self._max_length,
            **calibrated_weights(self.model, None),
        }

    def read_questions(
        self,
        rows: Sequence[QuestionRow],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> list[list[ReadQuestion]]:
        """The probabilities of the options of each row's questions, in their order. Takes what `decide_rows` does.

        Raises:
            ValueError: a question that cannot be asked. The message names the row.
        """
        # Targets are of no use here, and a batch could not hold them where some are missing.
        encoded = self._question_encoder.encode([replace(row, targets={}) for row in rows], first_row)
        self.check_encoded(encoded, first_row)
        asked = [one for row in encoded for one in row]
        read = iter(self.read_encoded(asked, batch_size, batch_tokens=batch_tokens, show_progress=show_progress))
        return [[next(read) for _ in row] for row in encoded]

    def read_encoded(
        self,
        asked: Sequence[EncodedQuestion],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        show_progress: bool | None = None,
    ) -> list[ReadQuestion]:
        """The probabilities of the options of questions that are encoded already, see [`QuestionEncoder`]."""
        log_probs = self._log_probs(asked, batch_size, batch_tokens, show_progress)
        return [ReadQuestion(one.question, found) for one, found in zip(asked, log_probs, strict=True)]

    @property
    def computes_in_half(self) -> bool:
        """Whether the model computes in bfloat16 or float16."""
        return (self._autocast or self.model.dtype) in (torch.bfloat16, torch.float16)

    @property
    def max_length(self) -> int | None:
        """The most tokens of a prompt, or of a state and a question; None for no limit."""
        return self._max_length

    def check_encoded(self, encoded: Sequence[Sequence[EncodedQuestion]], first_row: int) -> None:
        """Refuse questions that the model cannot take, and say once that states were cut.

        Raises:
            ValueError: a question has more tokens than the model has positions. The message names the row.
        """
        limits = ModelLimits.of(self.model)
        for number, row in enumerate(encoded, first_row):
            for one in row:
                limits.check_columns([one.input_ids], [one.columns()["grid_token_ids"]], number)
        cut = sum(row[0].was_cut for row in encoded)
        if cut and not self._said_cut:
            self._said_cut = True
            warn(
                logger,
                f"{cut} of the first {len(encoded)} states are longer than `max_length={self._max_length}` leaves "
                "room for, and lose their end. Set `max_length` to more to keep it.",
            )

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


def _collate(collator: QuestionCollator, asked: Sequence[EncodedQuestion]) -> dict[str, torch.Tensor]:
    return collator([{name: [value] for name, value in one.columns().items()} for one in asked])
