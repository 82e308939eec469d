"""The losses of answers against arithmetic by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from raft_peft import decisions
from raft_peft.distribution import GridDistribution
from raft_peft.methods.answer_losses import AnswerLosses
from raft_peft.methods.answers import check_answers, settings_for_answers
from raft_peft.methods.table import METHODS, MethodSettings

NAN = math.nan
# A score of three levels, a question of yes and no, a choice of three, and a number up to 100.
VALUES = [[0, 1, 2], [0, 1, NAN], [0, 1, 2], [0, 50, 100]]
PROBS = [[0.2, 0.3, 0.4], [0.1, 0.6, 0], [0.5, 0.2, 0.1], [0.25, 0.25, 0.25]]


def readout():
    method = METHODS["raft"]
    return SimpleNamespace(
        method=method, head=None, expectation=lambda output: decisions.mean(output, renormalize=True)
    )


def batch():
    return {
        "option_values": torch.tensor(VALUES),
        "is_choice": torch.tensor([False, False, True, False]),
        "labels": torch.tensor([1.5, 0.75, NAN, 20.0]),
        # Two ratings; a probability as shares of no and yes; an option; one number.
        "rating_values": torch.tensor([[1.0, 2.0], [0.0, 1.0], [2.0, 0.0], [20.0, 0.0]]),
        "rating_shares": torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]]),
    }


def losses(settings):
    log_probs = torch.tensor(PROBS).log().requires_grad_()
    found = AnswerLosses(settings, readout())(GridDistribution(log_probs, torch.arange(3.0)), batch())
    found.sum().backward()
    assert torch.isfinite(log_probs.grad[torch.tensor(PROBS) > 0]).all()
    return found.tolist()


def test_raft_with_soft_cross_entropy():
    score = (0.3 + 2 * 0.4) / 0.9
    of_score = ((score - 1.5) / 0.5) ** 2 - 0.5 * math.log(0.3) - 0.5 * math.log(0.4)
    of_yes = ((0.6 / 0.7 - 0.75) / 0.25) ** 2 - 0.25 * math.log(0.1) - 0.75 * math.log(0.6)
    of_choice = -math.log(0.1)
    # 20 is three fifths of 0 and two fifths of 50.
    of_number = ((50 - 20) / 25) ** 2 - 0.6 * math.log(0.25) - 0.4 * math.log(0.25)
    expected = [of_score, of_yes, of_choice, of_number]
    assert losses(settings_for_answers(MethodSettings())) == pytest.approx(expected, rel=1e-5)


def test_a_proper_loss_alone():
    """CRPS of a score, by its integral, and the mass off its options; the same on any scale."""
    crps = MethodSettings(method="crps")
    p = [0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9]
    # Ratings 1 and 2: between 0 and 1 none is below; between 1 and 2 one of two.
    of_ratings = [(p[0] ** 2 + (p[0] + p[1] - one) ** 2) for one in (1, 0)]
    expected = (sum(of_ratings) / 2 - math.log(0.9)) / 0.5
    found = losses(crps)
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_the_settings_stay_as_they_are():
    settings = MethodSettings()
    assert settings_for_answers(settings).distribution_loss == "soft_ce"
    assert settings.distribution_loss is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ce"}, "Method 'ce' cannot answer typed questions"),
        ({"method": "special_token"}, "Use one of raft, crps, soft_ce, rps, or rail"),
        ({"decision": "median"}, "every question has options of its own"),
        ({"renormalize": False}, "`answer.label_mass` tells how probable"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        check_answers(MethodSettings(**settings))
