"""The methods as data, those that the paper compares (its Table 2) and others: a head, a loss, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
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
    LOSS_SETTINGS,
    check_distribution_loss,
    number_token_loss,
    with_distribution_loss,
)

ATTENTIONS = ("causal", "bidirectional")
POOLINGS = ("mean", "min", "max")
WEIGHTS = ("grid", "vocabulary")


@dataclass(kw_only=True)
class MethodSettings:
    """How a number is read off the model, and how it is trained to say it.

    Parameters:
        method: one of `METHODS`.
        decision: the decision rule on the distribution over the grid: mean, median, mode or quantile:LEVEL.
        renormalize: divide the probabilities by their sum over the grid, in training and in prediction (the paper's
            Table 16). False: they are over the whole vocabulary (its eq. 10). None: True where the grid has numbers
            below and above 0, else False; see `renormalizes`.
        attention: causal, or bidirectional, where every token of the prompt attends to all (the paper's Figure 3).
        number_end: what must follow a number that another begins with, such as 1 beside 10: grid, that the number does
            not go on within the grid; eos or end_of_turn, the token that ends a text or a turn of the chat template;
            or a text, such as "." or a new line.
        end_every_number: whether it must follow every number of the grid.
        constrained: whether text is decoded within the grid, all other tokens ruled out.
        num_samples: with `rail`, predict by the mean of this many sampled texts (the paper takes 32) instead of by
            scoring the grid; with `mbr`, train on this many draws (its eq. 13) instead of on the sum over the grid
            (its eq. 14).
        weights: with `learnable_raft`, whether to learn a weight for the tokens of the grid or of the vocabulary.
        special_token: with `special_token`, the token whose logit is read. By default the end-of-sequence token.
        mlp_width: with `logits_mlp`, the width of the hidden layer.
        pooling: with `pooled`, mean, min or max.
        distribution_loss: crps, soft_ce or rps, a proper loss of the distribution that is added to the method's own,
            so that more than the mean is trained.
        distribution_weight: what it is multiplied by. None: as much as 1 on the grid 1 to 5, whatever the scale; see
            `resolve_distribution_weight`. With `number_token_loss`, the weight of the distance; None for 0.3.
        label_smoothing: with soft_ce, the standard deviation of a Gaussian about each label, in the unit of the
            labels. 0: the two neighbours of the label share its weight.
    """

    method: str = field(
        default="raft",
        metadata={
            "help": "How a number is read off the model and trained: raft, rail, zero_shot, ce, mbr, log_loss, "
            "crps, soft_ce, rps, number_token_loss, learnable_raft, special_token, logits_mlp, pooled or "
            "probability_projection."
        },
    )
    decision: str = field(
        default="mean",
        metadata={
            "help": "Decision rule on the distribution over the grid, in evaluation and prediction: mean, median, "
            "mode, or a quantile such as quantile:0.9."
        },
    )
    renormalize: bool | None = field(
        default=None,
        metadata={
            "help": "Divide the probabilities by their sum over the grid, in training and in prediction. Off, they "
            "are over the whole vocabulary, and all else counts as 0. By default on where the grid has numbers below "
            "and above 0.",
            "nargs": "?",
            "const": True,
        },
    )
    attention: str = field(
        default="causal",
        metadata={"help": "causal, or bidirectional, where every token of the prompt attends to all of them."},
    )
    number_end: str = field(
        default=GRID_END,
        metadata={
            "help": "What must follow a number that another begins with, such as 1 beside 10: grid (it does not go on "
            "within the grid), eos, end_of_turn, or a text such as '.'."
        },
    )
    end_every_number: bool = field(
        default=False, metadata={"help": "Whether `number_end` must follow every number of the grid."}
    )
    constrained: bool = field(
        default=False,
        metadata={"help": "Whether text is decoded within the grid alone (with zero_shot, ce and sampled rail)."},
    )
    num_samples: int | None = field(
        default=None,
        metadata={
            "help": "With method rail, predict by the mean of this many sampled texts instead of by scoring the grid; "
            "with mbr, train on this many draws instead of on the exact sum."
        },
    )
    weights: str = field(
        default="grid",
        metadata={"help": "With method learnable_raft, learn a weight for the tokens of the `grid` or `vocabulary`."},
    )
    special_token: str | None = field(
        default=None,
        metadata={"help": "With method special_token, the token whose logit is read. By default the eos token."},
    )
    mlp_width: int = field(default=64, metadata={"help": "With method logits_mlp, the width of the hidden layer."})
    pooling: str = field(default="mean", metadata={"help": "With method pooled: mean, min or max."})
    distribution_loss: str | None = field(
        default=None,
        metadata={
            "help": "A proper loss of the distribution, added to the method's own: crps, soft_ce or rps. Without it, "
            "method raft trains the mean alone."
        },
    )
    distribution_weight: float | None = field(
        default=None,
        metadata={
            "help": "The weight of `distribution_loss`. By default as much as 1 on the grid 1 to 5, whatever the "
            "scale. With method number_token_loss, the weight of the distance, by default 0.3."
        },
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "With soft_ce, the standard deviation of a Gaussian about each label, in the unit of the labels. "
            "By default the two neighbours of a label share its weight."
        },
    )

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
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` does not exist. Use one of {', '.join(map(str, choices))}."
                )
        takes = METHODS[self.method].takes
        for setting in fields(MethodSettings):
            if setting.name in ("method", *takes) or getattr(self, setting.name) in (setting.default, False):
                continue
            raise ValueError(
                f"`{setting.name}={getattr(self, setting.name)!r}` does nothing with method {self.method!r}. "
                f"{_WHY_NOT.get(setting.name, '')}Leave it at {setting.default!r}, or use one of "
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
