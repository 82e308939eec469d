"""The answers to typed questions: the probability of each option, read off the tokens with which an answer begins.

Every question has options of its own: the levels of a score, yes and no, the options of a choice, or numbers. An
option may be written in several ways, such as "yes" and "Yes", whose probabilities add up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.messages import warn
from raft_peft.methods.readout import HeadOutput, Reading, Readout
from raft_peft.methods.table import METHODS, MethodSettings

logger = logging.getLogger(__name__)

# The options stand in the batch. A readout is made for a grid, and these are numbers that nobody reads.
_NO_GRID = NumberGrid([0, 1])
_SMALL_MASS = 0.05


class AnswerReadout(Readout):
    """Reads questions as a [`Readout`] reads prompts, each with the options that the batch gives it.

    A batch holds beside `input_ids` and `attention_mask` of shape (questions, length), for each way to write an option
    its tokens, as a collator gives those of numbers, and `option_of_text`, the option that it stands for, -1 for
    padding, of shape (questions, texts); and `option_values`, the number of each option, NaN for padding, of shape
    (questions, options).

    Args:
        model, tokenizer, padding_free: as for [`Readout`].
        settings: the method and its options; one that reads a distribution over a grid.

    Raises:
        ValueError: the method reads no distribution over options, or the settings do not apply to questions.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: MethodSettings, *, padding_free: bool = False):
        check_answers(settings)
        super().__init__(model, tokenizer, _NO_GRID, settings, grid_token_ids=None, padding_free=padding_free)
        self.renormalize = True

    def _over_options(self, distribution: GridDistribution, batch: Mapping[str, torch.Tensor]) -> GridDistribution:
        """The distribution over the options of each question, of log-probability -inf on padding.

        Its values are the options' places, from 0 on.
        """
        option = batch["option_of_text"].to(distribution.log_probs.device)
        places = torch.arange(batch["option_values"].shape[1], device=option.device)
        # A text of another option has no part in the sum.
        others = option.unsqueeze(1) != places.unsqueeze(1)
        log_probs = distribution.log_probs.unsqueeze(1).masked_fill(others, -torch.inf).logsumexp(-1)
        return GridDistribution(log_probs, places.float())

    def _warn_if_grid_mass_is_small(self, distribution: GridDistribution) -> None:
        if self._mass_checked:
            return
        self._mass_checked = True
        mass = distribution.mass.mean().item()
        if mass < _SMALL_MASS:
            warn(
                logger,
                f"The model answers with a label of the questions with a probability of {mass:.2%} only, and its "
                "answers are read from this alone. Train it on such questions, or take a template whose words it "
                "answers with a label.",
            )

    def read(self, head: HeadOutput, model: Any, batch: Mapping[str, torch.Tensor]) -> Reading:
        """The expected value of each question, or for a choice the place of its likeliest option."""
        distribution: Any = head.output
        values = batch["option_values"].to(distribution.log_probs.device).nan_to_num()
        expected = (distribution.renormalized().probs * values).sum(-1)
        likeliest = distribution.log_probs.argmax(-1).float()
        is_choice = batch["is_choice"].to(expected.device)
        return Reading(torch.where(is_choice, likeliest, expected), distribution, None)


def check_answers(settings: MethodSettings) -> None:
    """Refuse settings that mean nothing for questions.

    Raises:
        ValueError: the message names the setting and the cure.
    """
    method = METHODS[settings.method]
    if "distribution_loss" not in method.takes and settings.method != "rail":
        usable = [name for name, one in METHODS.items() if "distribution_loss" in one.takes]
        raise ValueError(
            f"Method {settings.method!r} cannot answer typed questions, which are read as probabilities of their "
            f"options. Use one of {', '.join(usable)}, or rail for a model that is not trained."
        )
    if settings.decision != "mean":
        raise ValueError(
            f"`decision={settings.decision!r}` is for one grid, and every question has options of its own. Leave it "
            "at 'mean', and take what you need of `answer.probabilities`."
        )
    if settings.renormalize is False:
        raise ValueError(
            "`renormalize=False` does nothing for typed questions: an answer is always given one of its options. "
            "Leave it out; `answer.label_mass` tells how probable these are."
        )


def settings_for_answers(settings: MethodSettings) -> MethodSettings:
    """The settings with which questions are trained, as a copy: RAFT with a proper loss beside it by default."""
    chosen = replace_settings(settings, renormalize=True)
    if chosen.method == "raft" and chosen.distribution_loss is None:
        chosen.distribution_loss = "soft_ce"
    return chosen


def replace_settings(settings: MethodSettings, **changes: Any) -> MethodSettings:
    """A copy of the settings of the method alone, with some changed."""
    return replace(MethodSettings(**settings.method_settings()), **changes)
