import math

import pytest
import torch

from raft_peft.distribution import GridDistribution
from raft_peft.training.batch_log import BatchLog, batch_totals, over_processes

# Three prompts of 3, 1 and 2 tokens.
BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
    "labels": torch.tensor([1.0, 2.0, 4.0]),
}
# Over two numbers: masses of 0.5, 0.8 and 1; entropies, renormalised, of log 2, log 2 and 0.
DISTRIBUTION = GridDistribution(torch.tensor([[0.25, 0.25], [0.4, 0.4], [1.0, 0.0]]).log(), torch.tensor([0.0, 1.0]))
LOSSES = torch.tensor([1.0, math.nan, math.inf])
PREDICTIONS = torch.tensor([2.0, 2.5, 1.0])
NO_PREDICTIONS = dict.fromkeys(
    ("rows", "prediction", "prediction_squared", "label", "label_squared", "squared_error"), 0
)


def totals_of(*arguments, **options):
    return {name: value.item() for name, value in batch_totals(*arguments, **options).items()}


def test_totals_by_hand():
    assert totals_of(BATCH, LOSSES, DISTRIBUTION, PREDICTIONS, middle=2) == pytest.approx(
        {
            "tokens": 6,
            "with_grid": 3,
            "grid_mass": 2.3,
            "entropy": 2 * math.log(2),
            "not_finite": 2,
            "rows": 3,
            "prediction": 0 + 0.5 - 1,
            "prediction_squared": 0.25 + 1,
            "label": -1 + 0 + 2,
            "label_squared": 1 + 4,
            "squared_error": 1 + 0.25 + 9,
        }
    )


def test_rows_that_do_not_count_are_left_out():
    batch = {**BATCH, "counts": torch.tensor([True, True, False])}
    predictions = torch.tensor([2.0, 2.5, math.nan])
    assert totals_of(batch, LOSSES, DISTRIBUTION, predictions) == pytest.approx(
        {
            "tokens": 4,
            "with_grid": 2,
            "grid_mass": 1.3,
            "entropy": 2 * math.log(2),
            "not_finite": 1,
            "rows": 2,
            "prediction": 4.5,
            "prediction_squared": 10.25,
            "label": 3,
            "label_squared": 5,
            "squared_error": 1.25,
        }
    )


def test_totals_without_a_distribution():
    totals = totals_of(BATCH, LOSSES, None)
    assert totals == {"tokens": 6, "with_grid": 0, "grid_mass": 0, "entropy": 0, "not_finite": 2, **NO_PREDICTIONS}


def test_totals_of_two_processes_are_added_under_their_names():
    class TwoAlike:
        def gather(self, tensor):
            return torch.cat([tensor, tensor])

    totals = {"tokens": torch.tensor(3.0), "grid_mass": torch.tensor(0.5)}
    assert over_processes(totals, TwoAlike()) == {"tokens": 6, "grid_mass": 1}


def test_averages_over_batches_and_tokens_since_the_beginning():
    log = BatchLog()
    assert log.take() == {}
    log.add({"tokens": 8, "with_grid": 2, "grid_mass": 1.0, "entropy": 0.5}, tp_size=2)
    log.add({"tokens": 4, "with_grid": 4, "grid_mass": 1.0, "entropy": 3.0}, tp_size=2)
    assert log.take() == {"num_tokens": 6, "grid_mass": (0.5 + 0.25) / 2, "entropy": (0.25 + 0.75) / 2}
    assert log.take() == {}
    log.add({"tokens": 2, "with_grid": 0, "grid_mass": 0.0, "entropy": 0.0}, tp_size=2)
    assert log.take() == {"num_tokens": 7}
