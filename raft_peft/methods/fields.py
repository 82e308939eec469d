"""The settings of the methods, as fields with their help. Loads no torch, so that the help of a command is quick."""

from __future__ import annotations

from dataclasses import dataclass, field

from raft_peft.grid.number_end import GRID_END

# These settings are of the loss alone. They change what is learned, and not how a number is read off a model.
LOSS_SETTINGS = ("distribution_loss", "distribution_weight", "label_smoothing")


@dataclass(kw_only=True)
class MethodFields:
    """How a number is read off the model, and how it is trained to say it.

    Parameters:
        method: one of `METHODS`.
        decision: the decision rule on the distribution over the grid: mean, median, mode,
            quantile:LEVEL or risk_averse:AVERSION.
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
            "mode, a quantile such as quantile:0.9, or risk_averse:0.5, the mean less half a standard deviation."
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
