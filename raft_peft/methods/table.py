"""The methods as data, those that the paper compares (its Table 2) and others: a head, a loss, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from raft_peft import losses
from raft_peft.decisions import check_rule
from raft_peft.grid.number_end import EOS_END, GRID_END, TURN_END, NumberEnd
from raft_peft.heads import (
    GridHead,
    Head,
    HeadSetup,
    LearnableGridHead,
    LogitsMLPHead,
    PooledHead,
    ProbabilityProjectionHead,
    SpecialTokenHead,
    UpperValueHead,
)
from raft_peft.methods.distribution_losses import (
    DISTRIBUTION_LOSSES,
    check_distribution_loss,
    number_token_loss,
    with_distribution_loss,
)
from raft_peft.methods.fields import LOSS_SETTINGS, MethodFields

ATTENTIONS = ("causal", "bidirectional")
POOLINGS = ("mean", "min", "max")
WEIGHTS = ("grid", "vocabulary")


@dataclass(kw_only=True)
class MethodSettings(MethodFields):
    """How a number is read off the model, and how it is trained to say it, with the fields of [`MethodFields`]."""

    def check_method(self) -> None:
        """Refuse settings that do not exist or do not go together.

        Raises:
            ValueError: the message names the setting, the reason and the cure.
        """
        check_rule(self.decision)
        for name, choices in (
            ("method", METHODS),
            ("attention", ATTENTIONS),
            ("weights", WEIGHTS),
            ("pooling", POOLINGS),
            ("distribution_loss", (None, *DISTRIBUTION_LOSSES)),
        ):
            if getattr(self, name) not in choices:
                or_none = ", or leave it out" if None in choices else ""
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` does not exist. Use one of "
                    f"{', '.join(one for one in choices if one is not None)}{or_none}."
                )
        takes = METHODS[self.method].takes
        for setting in fields(MethodSettings):
            if setting.name in ("method", *takes) or getattr(self, setting.name) in (setting.default, False):
                continue
            raise ValueError(
                f"`{setting.name}={getattr(self, setting.name)!r}` does nothing with method {self.method!r}. "
                f"{_WHY_NOT.get(setting.name, '')}Leave it out, or use the method "
                f"{', '.join(name for name, method in METHODS.items() if setting.name in method.takes)}."
            )
        if self.num_samples is not None:
            if self.num_samples < (2 if self.method == "mbr" else 1):
                raise ValueError(f"`num_samples={self.num_samples}` is too few. The paper takes 32.")
            if self.attention == "bidirectional" and self.method == "rail":
                raise ValueError(f"`attention='bidirectional'` cannot be sampled from. {_WHY_NOT['attention']}")
            if self.decision != "mean" and self.method == "rail":
                raise ValueError("Sampled `rail` predicts by the mean of its samples. Leave `decision` at 'mean'.")
        if not self.number_end:
            raise ValueError(f"`number_end=''` is empty. Leave it at {GRID_END!r}, or set a text such as a new line.")
        if self.end_every_number and self.number_end == GRID_END:
            raise ValueError(
                f"`end_every_number=True` needs an end that can follow: set `number_end` to {EOS_END!r}, "
                f"{TURN_END!r} or a text."
            )
        if self.constrained and self.method == "rail" and self.num_samples is None:
            raise ValueError(
                "`constrained=True` is for decoding, and `rail` scores the grid without any. Set `num_samples`, or "
                "leave `constrained` off."
            )
        check_distribution_loss(self)
        if self.mlp_width < 1:
            raise ValueError(f"`mlp_width={self.mlp_width}` must be 1 or more.")
        if self.weights == "vocabulary" and self.decision != "mean":
            raise ValueError(
                "Weights of the whole vocabulary predict one number, without a distribution over the "
                "grid. Leave `decision` at 'mean'."
            )

    def end_of_numbers(self, tokenizer: Any) -> NumberEnd:
        """What must follow a number, under a tokenizer."""
        return NumberEnd.of(self.number_end, tokenizer, every_number=self.end_every_number)

    def method_settings(self) -> dict[str, Any]:
        """These settings alone, also of a class that adds others."""
        return {setting.name: getattr(self, setting.name) for setting in fields(MethodSettings)}

    def reading_settings(self) -> dict[str, Any]:
        """Those by which numbers are read off a model, without those of the loss."""
        return {name: value for name, value in self.method_settings().items() if name not in LOSS_SETTINGS}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the paper's Table 2.

    Attributes:
        head: makes the head from the settings, what the model is, and its tokenizer.
        loss: makes the training loss, of settings whose `renormalize` is known; None where there is nothing to train,
            or where it is over the target's text.
        takes: the settings of `MethodSettings` that mean something for it.
        reads_text: whether the prediction is decoded text, parsed to a number.
        trains_text: whether the loss is the cross-entropy of the target's text.
        limited_by_grid: whether its predictions stay within the grid's reach, so that a label beyond is worth a
            warning.
        labels_within_grid: whether a label outside the grid's range is an error, since the loss has no lower bound
            there, or takes the label as a distribution over the grid.
        renormalizes: whether `renormalize` is True by default, as the loss is of the distribution given that the
            answer is on the grid, or pulls all probability onto it.
        source: the equation or table of the paper (Lukasik et al., 2025), or another paper.
    """

    head: Callable[[MethodSettings, HeadSetup, Any], Head]
    loss: Callable[[MethodSettings], losses.Loss | losses.DistributionLoss | losses.LossSum] | None
    takes: tuple[str, ...]
    source: str
    reads_text: bool = False
    trains_text: bool = False
    limited_by_grid: bool = False
    labels_within_grid: bool = False
    renormalizes: bool = False

    @property
    def trains(self) -> bool:
        return self.loss is not None or self.trains_text


_WHY_NOT = {
    "attention": "Text is generated from left to right: with bidirectional attention each token would see those that "
    "it is to predict. ",
    "decision": "It predicts one number, without a distribution to decide on. ",
    "number_end": "It reads no number's tokens. ",
    "constrained": "It decodes no text. ",
    "renormalize": "It has no distribution over the grid to renormalize. ",
    "distribution_loss": "It has no distribution over the grid to train, or trains on text. ",
}


def _grid_head(settings: MethodSettings, setup: HeadSetup, tokenizer: Any) -> Head:
    return GridHead(setup.values)


def _squared_error(settings: MethodSettings) -> losses.Loss:
    return losses.squared_error


def _expected_squared_error(settings: MethodSettings) -> losses.DistributionLoss:
    if settings.num_samples is None:
        return losses.ExpectedSquaredError(renormalize=bool(settings.renormalize))
    return losses.SampledSquaredError(settings.num_samples, renormalize=bool(settings.renormalize))


def _special_token_id(tokenizer: Any, settings: MethodSettings) -> int:
    """The id of the special token of `special_token`.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    token = settings.special_token if settings.special_token is not None else tokenizer.eos_token
    token_id = None if token is None else tokenizer.get_vocab().get(token)
    if token_id is None:
        raise ValueError(
            f"The tokenizer has no token {token!r}. Set `special_token` to one of its tokens, such as one of "
            f"{tokenizer.all_special_tokens[:5]}."
        )
    return token_id


_ENDS = ("number_end", "end_every_number")
_ON_GRID = ("decision", "renormalize", "attention", *_ENDS)
_DECODED = ("constrained", *_ENDS)


def _proper(loss: Callable[[MethodSettings], losses.DistributionLoss | losses.LossSum], *, source: str) -> Method:
    return Method(
        head=_grid_head,
        loss=with_distribution_loss(loss),
        takes=(*_ON_GRID, *LOSS_SETTINGS),
        limited_by_grid=True,
        labels_within_grid=True,
        renormalizes=True,
        source=source,
    )


METHODS: dict[str, Method] = {
    "raft": Method(
        head=_grid_head,
        loss=with_distribution_loss(_squared_error),
        takes=(*_ON_GRID, *LOSS_SETTINGS),
        limited_by_grid=True,
        source="eq. 10, Table 16",
    ),
    "rail": Method(
        head=_grid_head,
        loss=None,
        takes=(*_ON_GRID, "num_samples", "constrained"),
        limited_by_grid=True,
        source="eq. 4, 5",
    ),
    "zero_shot": Method(
        head=_grid_head,
        loss=None,
        takes=_DECODED,
        reads_text=True,
        source="eq. 1",
    ),
    "ce": Method(
        head=_grid_head,
        loss=None,
        takes=_DECODED,
        reads_text=True,
        trains_text=True,
        source="eq. 8",
    ),
    "mbr": Method(
        head=_grid_head,
        loss=_expected_squared_error,
        takes=(*_ON_GRID, "num_samples"),
        limited_by_grid=True,
        source="eq. 13, 14",
    ),
    "crps": _proper(DISTRIBUTION_LOSSES["crps"], source="Gneiting and Raftery, 2007"),
    "soft_ce": _proper(DISTRIBUTION_LOSSES["soft_ce"], source="Imani and White, 2018"),
    "rps": _proper(DISTRIBUTION_LOSSES["rps"], source="Epstein, 1969"),
    "number_token_loss": Method(
        head=_grid_head,
        loss=number_token_loss,
        takes=(*_ON_GRID, "distribution_weight"),
        limited_by_grid=True,
        labels_within_grid=True,
        renormalizes=True,
        source="Zausinger et al., 2025",
    ),
    "log_loss": Method(
        head=lambda settings, setup, tokenizer: UpperValueHead(setup.values),
        loss=lambda settings: losses.LogLoss(),
        takes=("attention", *_ENDS),
        labels_within_grid=True,
        source="Table 15",
    ),
    "learnable_raft": Method(
        head=lambda settings, setup, tokenizer: LearnableGridHead(
            setup, whole_vocabulary=settings.weights == "vocabulary"
        ),
        loss=_squared_error,
        takes=("attention", "decision", "weights", *_ENDS),
        source="eq. 12",
    ),
    "special_token": Method(
        head=lambda settings, setup, tokenizer: SpecialTokenHead(setup, _special_token_id(tokenizer, settings)),
        loss=_squared_error,
        takes=("attention", "special_token"),
        source="Table 2",
    ),
    "logits_mlp": Method(
        head=lambda settings, setup, tokenizer: LogitsMLPHead(setup, width=settings.mlp_width),
        loss=_squared_error,
        takes=("attention", "mlp_width"),
        source="eq. 11",
    ),
    "pooled": Method(
        head=lambda settings, setup, tokenizer: PooledHead(setup, pooling=settings.pooling),
        loss=_squared_error,
        takes=("attention", "pooling"),
        source="Table 2",
    ),
    "probability_projection": Method(
        head=lambda settings, setup, tokenizer: ProbabilityProjectionHead(setup),
        loss=_squared_error,
        takes=("attention",),
        source="Table 2",
    ),
}


def needs_labels_within_grid(settings: MethodSettings, loss: Any = None) -> bool:
    """Whether a label outside the range of the grid is an error, by the method's loss or by a loss of the user's."""
    if loss is not None:
        return getattr(loss, "labels_within_grid", False)
    return METHODS[settings.method].labels_within_grid or settings.distribution_loss is not None
