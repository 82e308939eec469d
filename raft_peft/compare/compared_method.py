"""The methods of a comparison, as they are named on the command line."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from typing import Any

from raft_peft.grid import NumberGrid
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.renormalization import renormalizes
from raft_peft.prediction.remote.opening import NUMBER_APIS, PREDICT
from raft_peft.training.number_tokens import INITS

ENCODERS = ("encoder_cls", "encoder_mean")
SEQUENCE_CLASSIFICATION = "sequence_classification"
# They are trained by transformers' own `Trainer`, and know no grid.
BASELINES = (*ENCODERS, SEQUENCE_CLASSIFICATION)
# A model behind a server, which is asked, and not trained.
SERVED = "served"

# What a method of a comparison takes beside the settings of `MethodSettings`.
_WEIGHTS = ("pretrained", "random")
_CHOICES = {"init": _WEIGHTS, "token_rows": _WEIGHTS, "number_tokens": INITS}


@dataclass(frozen=True)
class ComparedMethod:
    """A method with its options: `raft`, `pooled:pooling=max`, `raft:grid=1,9`, `served:model=stars`.

    Attributes:
        label: as it was named.
        name: of the method, or of a baseline.
        options: its settings.
        grid: its own grid, in place of the comparison's.
        number_tokens: how the rows of new tokens start, one token for each number of the grid (the paper's Tables 17
            and 19), as in `add_number_tokens`; None for the tokens that there are.
        token_rows: `random` where the rows of the grid's tokens start at random numbers (its Table 18).
    """

    label: str
    name: str
    options: dict[str, Any]
    grid: NumberGrid | None = None
    number_tokens: str | None = None
    token_rows: str = "pretrained"

    @classmethod
    def parse(cls, label: str) -> ComparedMethod:
        """Read `name` or `name:option=value:option=value`.

        Raises:
            ValueError: there is no such method, or it does not take the option.
        """
        label = label.strip()
        name, *parts = re.split(r":(?=\w+=)", label)
        known = (*METHODS, *BASELINES, SERVED)
        if name not in known:
            raise ValueError(f"There is no method {name!r}. Choose one of {', '.join(known)}.")
        types = _option_types(name)
        options: dict[str, Any] = {}
        for part in parts:
            option, _, text = part.partition("=")
            if option not in types:
                raise ValueError(f"Method {name!r} has no option {option!r}. It has {', '.join(types) or 'none'}.")
            options[option] = _value(option, text, types[option])
        own = {option: options.pop(option) for option in ("grid", "number_tokens", "token_rows") if option in options}
        method = cls(label, name, options, **own)
        if method.is_served:
            method._check_served()
        if method.is_of_table:
            method._check(method.grid)
        return method

    def check_grid(self, grid: NumberGrid) -> None:
        """Refuse the grid of a comparison for a method without one of its own, where it cannot answer with it.

        Raises:
            ValueError: every prediction would be the same.
        """
        if self.is_of_table and self.grid is None:
            self._check(grid)

    def renormalizes(self, grid: NumberGrid) -> bool:
        """Whether it divides the probabilities by their sum over a grid."""
        return self.is_of_table and renormalizes(self._settings, grid)

    @property
    def _settings(self) -> MethodSettings:
        return MethodSettings(
            method=self.name, **{option: value for option, value in self.options.items() if option != "init"}
        )

    def _check_served(self) -> None:
        api = self.options.get("api", PREDICT)
        if "model" not in self.options:
            raise ValueError(
                f"{self.label!r} names no model. Write 'served:model=NAME', with the name that the server knows."
            )
        if api not in NUMBER_APIS:
            raise ValueError(f"{self.label!r}: `api={api}` predicts no numbers. Use {' or '.join(NUMBER_APIS)}.")
        if "tokenizer" in self.options and api == PREDICT:
            raise ValueError(f"{self.label!r}: a tokenizer is for 'api=completions'. Leave it out.")

    def _check(self, grid: NumberGrid | None) -> None:
        settings = self._settings
        settings.check_method()
        if grid is not None:
            check_grid(settings, grid)
        changes_tokens = self.number_tokens is not None or self.token_rows == "random"
        if changes_tokens and "number_end" not in METHODS[self.name].takes:
            raise ValueError(
                f"Method {self.name!r} reads no number's tokens. Leave out `number_tokens` and `token_rows` in "
                f"{self.label!r}."
            )
        if changes_tokens and self.starts_at_random:
            raise ValueError(f"{self.label!r} starts from random weights, also those of its tokens. Leave one out.")
        if self.number_tokens is not None and self.token_rows == "random":
            raise ValueError(f"{self.label!r} sets the rows of its tokens twice. Use number_tokens=random alone.")

    @property
    def is_baseline(self) -> bool:
        return self.name in BASELINES

    @property
    def is_served(self) -> bool:
        return self.name == SERVED

    @property
    def is_of_table(self) -> bool:
        """Whether it is one of `METHODS`."""
        return self.name in METHODS

    @property
    def is_encoder(self) -> bool:
        return self.name in ENCODERS

    @property
    def trains(self) -> bool:
        return self.is_baseline or (self.is_of_table and METHODS[self.name].trains)

    @property
    def reads_text(self) -> bool:
        return self.is_of_table and METHODS[self.name].reads_text

    @property
    def starts_at_random(self) -> bool:
        return self.options.get("init") == "random"

    @property
    def is_random(self) -> bool:
        """Whether its numbers differ from seed to seed."""
        return self.trains or "num_samples" in self.options

    @property
    def slug(self) -> str:
        """A folder's name, another for every label."""
        readable = re.sub(r"[^\w.-]+", "-", self.label)
        if readable == self.label:
            return readable
        # A grid with texts may be long, and a folder's name has an end.
        return f"{readable[:80]}-{hashlib.sha256(self.label.encode()).hexdigest()[:6]}"


def split_methods(text: str) -> list[str]:
    """The methods of a list: between commas, or between semicolons where there is one, since a grid holds commas.

    >>> split_methods("raft,ce")
    ['raft', 'ce']
    >>> split_methods("raft:grid=1,9; raft:grid=5")
    ['raft:grid=1,9', 'raft:grid=5']

    Raises:
        ValueError: a grid of several numbers stands in a list that commas separate.
    """
    labels = [label.strip() for label in text.split(";" if ";" in text else ",") if label.strip()]
    stray = next((label for label in labels if re.match(r"[-\d.]", label)), None)
    if stray is not None:
        raise ValueError(
            f"{stray!r} in `methods={text}` is not a method. If a grid holds commas, end each method with a "
            "semicolon, as in 'raft:grid=1,9;'."
        )
    return labels


def _option_types(name: str) -> dict[str, Any]:
    """What a method can be told beside its name, and the type of each."""
    if name == SERVED:
        return dict.fromkeys(("model", "api", "tokenizer"), str)
    if name in BASELINES:
        return {"frozen": bool} if name in ENCODERS else {}
    types = {setting.name: type(setting.default) for setting in fields(MethodSettings) if setting.name != "method"}
    without_default = {"renormalize": bool, "num_samples": int, "special_token": str}
    without_default |= {"distribution_loss": str, "distribution_weight": float}
    return {**types, **without_default, **dict.fromkeys(_CHOICES, str), "grid": NumberGrid}


def _value(option: str, text: str, kind: Any) -> Any:
    if kind is NumberGrid:
        return NumberGrid.parse(text)
    if option in _CHOICES and text not in _CHOICES[option]:
        raise ValueError(f"`{option}={text}` does not exist. Use one of {', '.join(_CHOICES[option])}.")
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"The option {option!r} is true or false, got {text!r}.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"The option {option!r} is a number, got {text!r}.") from None
