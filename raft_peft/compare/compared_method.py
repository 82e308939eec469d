"""The methods of a comparison, as they are named on the command line."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from typing import Any

from raft_peft.methods import METHODS, MethodSettings

ENCODERS = ("encoder_cls", "encoder_mean")


@dataclass(frozen=True)
class ComparedMethod:
    """A method with its options: `raft`, `pooled:pooling=max`, `raft:init=random`, `encoder_cls:frozen=true`.

    Attributes:
        label: as it was named.
        name: of the method, or of an encoder baseline.
        options: its settings.
    """

    label: str
    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, label: str) -> ComparedMethod:
        """Read `name` or `name:option=value:option=value`.

        Raises:
            ValueError: there is no such method, or it does not take the option.
        """
        name, *parts = re.split(r":(?=\w+=)", label.strip())
        if name not in (*METHODS, *ENCODERS):
            raise ValueError(f"There is no method {name!r}. Choose of {', '.join((*METHODS, *ENCODERS))}.")
        types = {"frozen": bool} if name in ENCODERS else _option_types()
        options: dict[str, Any] = {}
        for part in parts:
            option, _, text = part.partition("=")
            if option not in types:
                raise ValueError(f"Method {name!r} has no option {option!r}. It has {', '.join(types)}.")
            options[option] = _value(option, text, types[option])
        if name not in ENCODERS:
            settings = {option: value for option, value in options.items() if option != "init"}
            MethodSettings(method=name, **settings).check_method()
            if options.get("init", "pretrained") not in ("pretrained", "random"):
                raise ValueError(f"`init={options['init']}` does not exist. Use pretrained or random.")
        return cls(label.strip(), name, options)

    @property
    def is_encoder(self) -> bool:
        return self.name in ENCODERS

    @property
    def trains(self) -> bool:
        return self.is_encoder or METHODS[self.name].trains

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
        return f"{readable}-{hashlib.sha256(self.label.encode()).hexdigest()[:6]}"


def _option_types() -> dict[str, type]:
    types = {setting.name: type(setting.default) for setting in fields(MethodSettings) if setting.name != "method"}
    return {**types, "num_samples": int, "special_token": str, "init": str}


def _value(option: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"The option {option!r} is true or false, got {text!r}.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"The option {option!r} is a whole number, got {text!r}.") from None
