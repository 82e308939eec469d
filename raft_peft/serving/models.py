"""The models of a server, by their names: what is asked of each, and how it is computed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

from raft_peft.data.questions.encoder import EncodedQuestion, QuestionEncoder
from raft_peft.data.questions.question import Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.distribution import GridDistribution
from raft_peft.forward.layouts import common_prefix
from raft_peft.grid import NumberGrid
from raft_peft.methods.head_origin import has_parameters
from raft_peft.methods.readout import Reading
from raft_peft.methods.saved_folder import RaftConfig, hub_options
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.identity import fingerprint_of
from raft_peft.prediction.opening import base_of_adapter
from raft_peft.prediction.predictor import RegressionPredictor
from raft_peft.prediction.questions.calibration import QuestionCalibration
from raft_peft.serving.errors import invalid, not_found
from raft_peft.serving.limits import Limits

PROMPTS, QUESTIONS = "prompts", "questions"


@dataclass(eq=False)
class ServedModel:
    """A model and what it was trained on.

    Attributes:
        name: by which requests ask for it.
        predictor: computes its numbers.
        adapter: its name in the model, of which several may share one base; None where it is no adapter.
        batch_tokens: the most tokens in a forward pass, with padding.
        created: when it was opened, in seconds since 1970.
        folder: that it was opened from, or the repository of the Hub.
        is_base: whether its adapter is left out.
        with_other_grid: makes a predictor of other numbers; None where they are those of training.
        fingerprint: of its weights and settings, see [`fingerprint_of`].
    """

    name: str
    predictor: RegressionPredictor
    adapter: str | None = None
    batch_tokens: int = 4096
    created: int = field(default_factory=lambda: int(time.time()))
    folder: str = ""
    is_base: bool = False
    with_other_grid: Callable[[NumberGrid], RegressionPredictor] | None = None
    fingerprint: str = ""
    # A tokenizer of the Rust library may not be used by two threads while one changes its settings.
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._encoder = lru_cache(maxsize=32)(self._make_encoder)
        self._of_grid = lru_cache(maxsize=8)(self._make_of_grid)
        # Looked at now, while the adapter is the active one of a shared model.
        self._calibration, self._uncalibrated = None, ""
        if self.predictor.has_grid:
            try:
                self._calibration = self.predictor.calibrated()
            except ValueError as error:
                self._uncalibrated = str(error)
        self.question_calibration: QuestionCalibration | None = None
        if self.predictor.question_calibration is not None:
            with suppress(ValueError):
                self.question_calibration = self.predictor.calibrated_questions()

    def calibration(self) -> Calibration:
        """The calibration of its weights.

        Raises:
            RequestError: it has none.
        """
        if self._calibration is None:
            raise invalid(self._uncalibrated)
        return self._calibration

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibration` gives one."""
        return self._calibration is not None

    @cached_property
    def base(self) -> ServedModel | None:
        """The same questions and numbers asked of the base model, without the adapter; None where there is none.

        The parameters of a trained head belong to the adapter. Such a model has no numbers without it.
        """
        if self.adapter is None:
            return None
        predictor = copy(self.predictor)
        predictor.calibration = predictor.question_calibration = None
        return replace(self, predictor=predictor, is_base=True)

    @property
    def gives_numbers(self) -> bool:
        """Whether it predicts a number for a prompt."""
        predictor = self.predictor
        return predictor.has_grid and not (self.is_base and has_parameters(predictor.readout.head))

    def of_grid(self, grid: NumberGrid) -> ServedModel:
        """The same model with numbers of a request's own.

        Raises:
            RequestError: its numbers are those of training, or these cannot be read off it.
        """
        if self.with_other_grid is None:
            raise invalid(
                f"The model {self.name!r} was trained on numbers or questions of its own. Leave out the grid."
            )
        try:
            return self._of_grid(grid)
        except ValueError as error:
            raise invalid(str(error)) from error

    def _make_of_grid(self, grid: NumberGrid) -> ServedModel:
        assert self.with_other_grid is not None
        return replace(self, predictor=self.with_other_grid(grid))

    def encode_prompts(self, prompts: Sequence[Any], limits: Limits) -> tuple[list[Any], list[int]]:
        """Prompts ready to be computed, and the tokens of each.

        Args:
            prompts: as `RegressionPredictor.predict` takes them.
            limits: of the server.

        Raises:
            RequestError: one of them cannot be used, or is too long.
        """
        with self._encoding:
            try:
                encoded = self.predictor.encode(prompts)
            except ValueError as error:
                raise invalid(str(error)) from error
        tokens = [len(prompt.input_ids) for prompt in encoded]
        _check_length("Prompt", tokens, limits)
        cut = next((number for number, prompt in enumerate(encoded) if prompt.was_cut), None)
        if cut is not None:
            raise invalid(
                f"Prompt {cut} has more tokens than the {self.predictor.max_length:,} of the model's `max_length`. "
                "Shorten it."
            )
        return encoded, tokens

    def encode_questions(
        self, state: Any, questions: Sequence[Question], system: str | None, limits: Limits
    ) -> tuple[list[EncodedQuestion], int, int]:
        """The questions about a state ready to be computed, their tokens, and those without the state's repetition.

        Args:
            state: a text, JSON, or the messages of a chat.
            questions: about it, with ids of their own.
            system: a message before it; None for that of the model's template.
            limits: of the server.

        Raises:
            RequestError: one of them cannot be asked, or is too long.
        """
        with self._encoding:
            try:
                row = QuestionRow.of({"state": state, "questions": {one.id: one for one in questions}})
                (encoded,) = self._encoder(system).encode([row])
            except ValueError as error:
                raise invalid(str(error)) from error
        if any(one.was_cut for one in encoded):
            raise invalid(
                f"The state and its question have more tokens than the {self.predictor.max_length:,} of the model's "
                "`max_length`. Send a shorter state."
            )
        lengths = [len(one.input_ids) for one in encoded]
        _check_length("Question", lengths, limits)
        try:
            self.predictor.check_encoded([encoded], 0)
        except ValueError as error:
            raise invalid(str(error)) from error
        shared = len(common_prefix([one.input_ids for one in encoded]))
        return encoded, sum(lengths), sum(lengths) - shared * (len(lengths) - 1)

    def compute(self, kind: str, items: Sequence[Any]) -> list[Any]:
        """A reading for each encoded prompt, or a list of `ReadQuestion` for each state."""
        if self.adapter is not None:
            self.predictor.model.set_adapter(self.adapter)
        with self.predictor.model.disable_adapter() if self.is_base else nullcontext():
            if kind == PROMPTS:
                return _one_by_one(self.predictor.runner(batch_tokens=self.batch_tokens).run(items, lambda _: None))
            asked = [one for state in items for one in state]
            read = iter(self.predictor.read_encoded(asked, batch_tokens=self.batch_tokens))
            return [[next(read) for _ in state] for state in items]

    def described(self) -> dict[str, Any]:
        """The entry of `/v1/models`."""
        predictor = self.predictor
        about: dict[str, Any] = {"id": self.name, "object": "model", "created": self.created, "owned_by": "raft-peft"}
        if predictor.has_grid:
            about |= {"grid": list(predictor.grid.values), "method": predictor.settings.method}
        if predictor.questions is not None:
            about["questions"] = {name: Question.of(name, raw).as_dict() for name, raw in predictor.questions.items()}
        return about

    def _make_encoder(self, system: str | None) -> QuestionEncoder:
        predictor = self.predictor
        template = predictor.question_template
        template = template if system is None else replace(template, system=system)
        return QuestionEncoder(predictor.tokenizer, template, max_length=predictor.max_length)


class ServedModels(Mapping[str, ServedModel]):
    """The models of a server. The first is taken where a request names none."""

    def __init__(self, models: Sequence[ServedModel]):
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            raise ValueError("Two models have one name. Give each a name of its own.")

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Any:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def asked_for(self, name: str | None) -> ServedModel:
        """The model that a request names.

        Raises:
            RequestError: there is none of this name.
        """
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise not_found(f"There is no model {name!r:.80}. Ask for one of {', '.join(self._models)}.")
        return self._models[name]

    def compute(self, kind: Any, items: Sequence[Any]) -> list[Any]:
        """What the model of a kind, (model, what), makes of items."""
        model, what = kind
        return model.compute(what, items)


def _check_length(what: str, tokens: Sequence[int], limits: Limits) -> None:
    for number, count in enumerate(tokens):
        if count > limits.prompt_tokens:
            raise invalid(
                f"{what} {number} has {count:,} tokens, and the server takes {limits.prompt_tokens:,}. Shorten it."
            )


def _one_by_one(reading: Reading) -> list[Reading]:
    """The readings of single prompts, of that of several."""
    found = []
    for place in range(len(reading.predictions)):
        one = slice(place, place + 1)
        distribution = reading.distribution
        if distribution is not None:
            distribution = GridDistribution(distribution.log_probs[one], distribution.values)
        parsed = None if reading.parsed is None else reading.parsed[one]
        found.append(Reading(reading.predictions[one], distribution, parsed))
    return found


def open_models(
    folders: Mapping[str, str], grid: NumberGrid | None = None, *, batch_tokens: int = 4096, **options: Any
) -> ServedModels:
    """Open folders by their names. Adapters of one base model share it.

    Args:
        folders: or repositories of the Hub, by the names of their models.
        grid: of the first, where it was not trained here.
        batch_tokens: as in [`ServedModel`].
        options: of `RegressionPredictor.from_pretrained`.

    Raises:
        ValueError, OSError: a folder cannot be opened. The message names it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    opened: list[ServedModel] = []
    hosts: dict[str, Any] = {}
    for name, folder in folders.items():
        base = base_of_adapter(folder)
        predictor = RegressionPredictor.from_pretrained(
            folder, grid if not opened else None, beside=None if base is None else hosts.get(base), **given
        )
        adapter = None
        if base is not None:
            hosts[base] = predictor.model
            adapter = predictor.model.active_adapters[0]
        other = None if base is not None else _other_grids(predictor, folder, given)
        opened.append(
            ServedModel(
                name,
                predictor,
                adapter,
                batch_tokens,
                folder=str(folder),
                with_other_grid=other,
                # Taken now, while the adapter is the active one of a shared model.
                fingerprint=fingerprint_of(predictor),
            )
        )
    return ServedModels(opened)


def _other_grids(
    predictor: RegressionPredictor, folder: str, options: Mapping[str, Any]
) -> Callable[[NumberGrid], RegressionPredictor] | None:
    """What makes predictors of other grids on the same model; None where it was trained on a grid or on questions."""
    if RaftConfig.find(folder, hub_options(options)) is not None:
        return None
    return partial(
        RegressionPredictor,
        predictor.model,
        predictor.tokenizer,
        max_length=predictor.max_length,
        autocast=options.get("autocast"),
    )
