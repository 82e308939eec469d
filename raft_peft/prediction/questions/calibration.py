"""What held-out rows teach about a model's answers to typed questions: the object that is saved beside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.question import NUMBER, SCORE, Question
from raft_peft.distribution import GridDistribution
from raft_peft.methods.saved_folder import QUESTION_CALIBRATION_NAME, find_file
from raft_peft.prediction.calibrating.calibration import USUAL_LEVEL, Calibration, read_calibration
from raft_peft.prediction.calibrating.intervals.conformal import rank_of
from raft_peft.prediction.calibrating.intervals.option_sets import TrueOptions

CALIBRATE = "predictor.calibrate_questions(rows)"
_LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class CalibratedQuestion:
    """What held-out rows teach about the answers to one question, asked in the same words in all of them.

    Attributes:
        question: as it was asked.
        temperature: what `GridDistribution.tempered` takes to make the probabilities of the held-out rows as sure as
            they are right.
        numbers: of a score or a number, whose answers are numbers as those of plain rows; else None. Its settings are
            empty, since those of [`QuestionCalibration`] hold.
        options: of a choice or a question of yes and no; else None.
        mean_options: how many options the sets of level 0.9 have on the held-out rows; None where there are no such
            sets.
    """

    question: Question
    temperature: float
    numbers: Calibration | None = None
    options: TrueOptions | None = None
    mean_options: float | None = None

    @property
    def rows(self) -> int:
        """How many held-out rows have a target."""
        if self.options is not None:
            return self.options.rows
        return 0 if self.numbers is None else len(self.numbers.errors)

    def check(self, level: float) -> None:
        """Raise a ValueError where no interval or set of a level can be given."""
        rank_of(level, self.rows, f" of the question {self.question.id!r}")

    def limits(self, log_probs: np.ndarray, level: float) -> list[dict[str, Any]]:
        """Where the targets of rows lie with a probability of at least `level`.

        Args:
            log_probs: of the options, in nats, of shape (rows, options).
            level: the share of targets to be covered, between 0 and 1.

        Returns:
            Of each row what an [`Answer`] holds of it: `low` and `high`, or `options`.

        Raises:
            ValueError: as `check`.
        """
        self.check(level)
        probabilities = softmax(log_probs.astype(np.float64), axis=1)
        if self.options is not None:
            names = np.array(self.question.names, dtype=object)
            return [{"options": tuple(names[inside])} for inside in self.options.sets(probabilities, level)]
        assert self.numbers is not None
        distribution = GridDistribution(torch.from_numpy(log_probs), torch.tensor(self.question.values))
        ends = self.numbers.intervals(probabilities @ np.array(self.question.values), level, distribution)
        return [{"low": low, "high": high} for low, high in zip(*(end.tolist() for end in ends), strict=True)]

    def tempered(self, answer: Answer) -> dict[str, float]:
        """The probabilities of an answer to this question at the temperature, as sure as they are right; in order."""
        with np.errstate(divide="ignore"):
            log_probs = np.log(list(answer.probabilities.values()))
        return dict(zip(answer.probabilities, softmax(log_probs / self.temperature).tolist(), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """What a file holds of it."""
        return {
            "question": self.question.as_dict(),
            "temperature": self.temperature,
            "numbers": None if self.numbers is None else asdict(self.numbers),
            "options": None if self.options is None else asdict(self.options),
            "mean_options": self.mean_options,
        }

    def __str__(self) -> str:
        rows = f"{self.rows} row{'s' * (self.rows != 1)}"
        shown = self._intervals() if self.numbers is not None else self._sets()
        return f"{self.question.id} ({self.question.type}, {rows}): {shown}. Temperature {self.temperature:.3g}."

    def _intervals(self) -> str:
        numbers = self.numbers
        assert numbers is not None
        if numbers.kind == "quantiles":
            own = self._at_levels(lambda level: f"{100 * (1 - numbers.tail(level)):.4g}%")
            return f"targets lie within the model's own intervals of {own}"
        unit = " s" * (numbers.kind == "adaptive")
        widths = self._at_levels(lambda level: f"{numbers.half_width(level):.3g}{unit}")
        return f"targets lie within {widths} of the answer"

    def _sets(self) -> str:
        options = self.options
        assert options is not None
        shown = self._at_levels(lambda level: f"{options.least_probability(level):.2g}")
        shown = f"the options of targets have a probability of at least {shown}"
        if self.mean_options is None:
            return shown
        count = len(self.question.options)
        return f"{shown}; sets of {USUAL_LEVEL:.0%} have {self.mean_options:.3g} of {count} options"

    def _at_levels(self, figure: Callable[[float], str]) -> str:
        """A figure at each of the usual levels that so many rows can warrant, as `0.31 (50%), 0.52 (80%)`."""
        levels = [level for level in _LEVELS if (self.rows + 1) * (1 - level) > 1 - 1e-9]
        return ", ".join(f"{figure(level)} ({level:.0%})" for level in levels)


@dataclass(frozen=True)
class QuestionCalibration:
    """Errors of answers on held-out rows, saved beside the model as `question_calibration.json`.

    Each question is calibrated by itself. The intervals of scores and numbers are those of [`Calibration`]. A choice
    and a question of yes and no have sets, see [`TrueOptions`]. All hold for questions in the words in which they were
    asked on the held-out rows, and for the weights and settings with which these were read.

    Attributes:
        questions: by their ids.
        settings: how answers were read off the model.
    """

    questions: Mapping[str, CalibratedQuestion]
    settings: Mapping[str, Any]

    def of(self, question: Question) -> CalibratedQuestion:
        """What was learned of a question.

        Raises:
            ValueError: it was not calibrated, or in other words.
        """
        found = self.questions.get(question.id)
        if found is None:
            known = ", ".join(map(repr, self.questions))
            raise ValueError(
                f"The question {question.id!r} is not calibrated, as {known} are, so it has no interval. Calibrate on "
                f"held-out rows that have targets for it: `{CALIBRATE}`. Or leave it out."
            )
        if found.question != question:
            then, now = found.question.as_dict(), question.as_dict()
            name = next((name for name in now if now[name] != then[name]), "criteria")
            raise ValueError(
                f"The question {question.id!r} was calibrated in other words, for which alone its intervals hold: "
                f"with the {name} {then[name]!r:.80}, not {now[name]!r:.80}. Ask it as it was asked then, or "
                f"calibrate on rows that ask it like this: `{CALIBRATE}`."
            )
        return found

    def __str__(self) -> str:
        lines = [str(one) for one in self.questions.values()]
        if any(one.numbers is not None and one.numbers.kind == "adaptive" for one in self.questions.values()):
            lines.append("s is about the standard deviation of a row's own distribution.")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """What a file holds of it."""
        questions = {name: one.as_dict() for name, one in self.questions.items()}
        return {"questions": questions, "settings": dict(self.settings)}

    def save(self, folder: str | Path) -> None:
        """Write `question_calibration.json` into a folder."""
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False)
        (Path(folder) / QUESTION_CALIBRATION_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def find(cls, name: str, hub: Mapping[str, Any]) -> QuestionCalibration | None:
        """That of a folder or Hub repository, or None where it has none.

        Args:
            name: the folder or repository.
            hub: how the Hub is reached: `revision`, `token` and so on.

        Raises:
            ValueError: as in `load`.
        """
        path = find_file(name, QUESTION_CALIBRATION_NAME, hub)
        return None if path is None else cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> QuestionCalibration:
        """Read a `question_calibration.json`.

        Raises:
            ValueError: the file is not one.
        """
        try:
            return cls.read(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a usable calibration: {str(error).rstrip('.')}. Remove it, and calibrate again with "
                f"`{CALIBRATE}`."
            ) from error

    @classmethod
    def read(cls, read: Any) -> QuestionCalibration:
        """What `as_dict` gave.

        Raises:
            ValueError: it is no calibration. The message says what is wrong.
        """
        parts = read if isinstance(read, dict) else {}
        if not all(isinstance(parts.get(name), dict) for name in ("questions", "settings")):
            raise ValueError("it lacks questions or settings")
        questions = {name: _read_question(name, one) for name, one in parts["questions"].items()}
        return cls(questions, parts["settings"])


def _read_question(name: str, read: Any) -> CalibratedQuestion:
    """What a file holds of a question.

    Raises:
        ValueError: it is none. The message says what is wrong.
    """
    read = read if isinstance(read, dict) else {}
    question = Question.of(name, read.get("question"))
    try:
        temperature, mean_options = _positive(read, "temperature"), _positive(read, "mean_options")
        if temperature is None:
            raise ValueError("it lacks a temperature")
        has_numbers = question.type in (SCORE, NUMBER)
        numbers = read_calibration(read.get("numbers")) if has_numbers else None
        options = None if has_numbers else TrueOptions.read(read.get("options"))
    except ValueError as error:
        raise ValueError(f"of the question {name!r}, {error}") from error
    return CalibratedQuestion(question, temperature, numbers, options, mean_options)


def _positive(read: Mapping[str, Any], name: str) -> float | None:
    number = read.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
        raise ValueError(f"its {name} {number!r} is not a finite number above 0")
    return float(number)
