"""`NumberPredictor`: what predictors of numbers have in common, a model here and those behind servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from raft_peft.data.prompt_form import PromptForm
from raft_peft.data.remarks import Remarks
from raft_peft.grid import NumberGrid
from raft_peft.methods import MethodSettings
from raft_peft.methods.readout import Reading
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.reasoning.reasoned import ReasonedReading
from raft_peft.prediction.reasoning.writer import ReasoningWriter


class NumberPredictor(Protocol):
    """What predicts the rows of files, evaluates and is compared: [`RegressionPredictor`] and those of `remote/`.

    Attributes:
        settings: the method and its options.
        prompt_form: how prompts are written.
        calibration: None where there is none.
    """

    settings: MethodSettings
    prompt_form: PromptForm
    calibration: Calibration | None

    @property
    def grid(self) -> NumberGrid:
        """The numbers that it may answer with."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the numbers that there are probabilities for, in the order of a distribution's values."""

    @property
    def reads_text(self) -> bool:
        """Whether numbers are parsed from decoded texts."""

    @property
    def sums_to_one(self) -> bool:
        """Whether a distribution holds all probability by construction, so that its mass says nothing."""

    @property
    def computes_in_half(self) -> bool:
        """Whether numbers are computed in 16 bits, so that few of their digits mean something."""

    @property
    def reads_reasonings(self) -> bool:
        """Whether the words are known that lead from a reasoning to its score."""

    @property
    def calibrated(self) -> Callable[..., Calibration]:
        """Gives the calibration, where there is one for the way in which numbers are read; else a ValueError.

        It may take what writes reasonings before the numbers.
        """

    @property
    def writer(self) -> Callable[..., ReasoningWriter | None]:
        """Makes what writes reasonings before the numbers, of [`ReasoningOptions`]; a ValueError where it cannot."""

    def remarks(self) -> Remarks:
        """What says, once of each kind, what is odd about prompts and labels that are used."""

    def read(
        self,
        prompts: Iterable[Any],
        batch_size: int = ...,
        *,
        batch_tokens: int = ...,
        chunk_size: int = ...,
        first_row: int = ...,
        show_progress: bool | None = ...,
    ) -> Iterator[Reading]:
        """The readings of chunks of prompts, as they are read."""

    @property
    def read_reasonings(self) -> Callable[..., Iterator[ReasonedReading]]:
        """Gives the same behind each reasoning of a row. It takes what `read` takes, and a `writer`."""
