"""The settings of a loss of the distribution: what goes together, the weight by default, and what is saved of them."""

import json

import pytest
import torch
from conftest import make_byte_level, make_tiny_llama
from support.training import make

from raft_peft import GridDistribution, NumberGrid, RegressionPredictor
from raft_peft.losses import CRPS, LossSum, SoftCrossEntropy, squared_error
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.distribution_losses import resolve_distribution_weight
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.row_losses import losses_of
from raft_peft.methods.table import needs_labels_within_grid


class Reading:
    """What `losses_of` needs of a readout: the mean over the whole vocabulary."""

    method = METHODS["raft"]

    def expectation(self, output):
        return (output.probs * output.values).sum(-1)


ROWS = [{"prompt": f"Rate item {i}, the score is", "label": (1.0, 2.5)[i % 2]} for i in range(4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution_loss": "brier"}, "`distribution_loss='brier'` does not exist. Use one of crps, soft_ce"),
        ({"method": "pooled", "distribution_loss": "crps"}, "does nothing with method 'pooled'.*no distribution over"),
        ({"method": "ce", "distribution_loss": "crps"}, "does nothing with method 'ce'.*or trains on text"),
        ({"method": "crps", "distribution_loss": "crps"}, "is the loss of method 'crps' already"),
        ({"distribution_weight": 0.5}, "is the weight of a `distribution_loss`, and there is none"),
        ({"distribution_loss": "crps", "distribution_weight": 0.0}, "must be a number above 0"),
        ({"distribution_loss": "crps", "distribution_weight": float("inf")}, "must be a number above 0"),
        ({"distribution_loss": "crps", "label_smoothing": 0.5}, "does nothing without the loss soft_ce"),
        ({"method": "soft_ce", "label_smoothing": -1.0}, "is a standard deviation"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        MethodSettings(**options).check_method()


@pytest.mark.parametrize(
    ("method", "loss", "grid", "weight"),
    [
        ("raft", "crps", [1, 2, 3, 4, 5], 1),
        ("raft", "soft_ce", [1, 2, 3, 4, 5], 1),
        # Twenty-five times as wide: squared errors grow by 625, CRPS by 25, and a cross-entropy not at all.
        ("raft", "crps", range(101), 25),
        ("raft", "soft_ce", range(101), 625),
        ("raft", "rps", range(101), 625),
        ("crps", "soft_ce", range(101), 25),
        ("soft_ce", "crps", [0.0, 0.5, 1.0], 4),
    ],
)
def test_the_balance_of_two_losses_is_the_same_on_any_scale(method, loss, grid, weight):
    settings = MethodSettings(method=method, distribution_loss=loss)
    resolve_distribution_weight(settings, list(grid))
    assert settings.distribution_weight == pytest.approx(weight)


def test_a_weight_that_is_given_stays():
    settings = MethodSettings(distribution_loss="crps", distribution_weight=0.1)
    resolve_distribution_weight(settings, range(100))
    assert settings.distribution_weight == 0.1
    settings = MethodSettings()
    resolve_distribution_weight(settings, range(100))
    assert settings.distribution_weight is None


def test_scaled_labels_and_grid_scale_the_sum_as_the_squared_error():
    probs, labels = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([2.5])
    found = []
    for scale in (1, 10):
        values = torch.tensor([1.0, 3.0, 5.0]) * scale
        for name in ("crps", "soft_ce", "rps"):
            settings = MethodSettings(distribution_loss=name)
            resolve_distribution_weight(settings, values.tolist())
            loss = METHODS["raft"].loss(settings)
            output = GridDistribution(probs.log(), values)
            found.append(losses_of(output, labels * scale, loss=loss, readout=Reading()).item())
    assert found[3:] == pytest.approx([100 * one for one in found[:3]], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "cure"),
    [({"method": "crps"}, "Use method 'raft'"), ({"distribution_loss": "soft_ce"}, "Leave it out")],
)
def test_a_grid_of_one_number_has_no_distribution_to_learn(options, cure):
    with pytest.raises(ValueError, match=f"The grid holds 5 alone.*sure of 5.*{cure}"):
        check_grid(MethodSettings(**options), NumberGrid([5]))


def test_which_losses_need_labels_within_the_grid():
    assert not needs_labels_within_grid(MethodSettings())
    for options in ({"method": "soft_ce"}, {"distribution_loss": "crps"}, {"method": "log_loss"}):
        assert needs_labels_within_grid(MethodSettings(**options))
    assert needs_labels_within_grid(MethodSettings(), CRPS())
    assert needs_labels_within_grid(MethodSettings(), LossSum([(squared_error, 1.0), (SoftCrossEntropy(), 1.0)]))
    assert not needs_labels_within_grid(MethodSettings(), LossSum([(squared_error, 1.0)]))


def test_ratings_are_averaged_in_a_loss_of_the_distribution_and_their_mean_in_one_of_the_number():
    output = GridDistribution(torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]).log(), torch.tensor([1.0, 2.0, 4.0]))
    # 1, 1, 4, 4 and 2 alone, with a share of nothing behind it.
    ratings = (torch.tensor([[1.0, 4.0], [2.0, 0.0]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    labels = torch.tensor([2.5, 2.0])
    loss = LossSum([(squared_error, 1.0), (CRPS(), 2.0)])
    found = losses_of(output, labels, loss=loss, readout=Reading(), ratings=ratings)
    score = CRPS()
    of_ratings = [
        (score(output, torch.tensor([1.0, 2.0])) + score(output, torch.tensor([4.0, 2.0]))) / 2,
        score(output, labels),
    ]
    means = torch.tensor([0.2 + 0.6 + 2.0, 0.1 + 1.6 + 0.4])
    expected = (means - labels).square() + 2 * torch.stack([of_ratings[0][0], of_ratings[1][1]])
    torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    tokenizer = make_byte_level()
    options = {"max_steps": 1, "distribution_loss": "crps"}
    folder = tmp_path_factory.mktemp("run")
    trainer = make(make_tiny_llama(tokenizer), tokenizer, folder, ROWS, grid=range(5), options=options)
    trainer.train()
    trainer.save_model()
    return trainer


class TestARun:
    def test_is_saved_with_its_weight_and_read_without(self, trainer):
        with open(f"{trainer.args.output_dir}/raft_config.json", encoding="utf-8") as file:
            saved = json.load(file)
        assert (saved["method"], saved["distribution_loss"], saved["distribution_weight"]) == ("raft", "crps", 1.0)
        predictor = RegressionPredictor.from_pretrained(trainer.args.output_dir)
        assert "distribution_loss" not in predictor.settings.reading_settings()
        found = predictor.predict([row["prompt"] for row in ROWS])
        assert found == pytest.approx(trainer.predict(trainer.train_dataset).predictions, abs=1e-5)
        # Another way of reading the same weights has no loss.
        assert RegressionPredictor.from_pretrained(trainer.args.output_dir, method="rail").settings.method == "rail"

    def test_refuses_a_loss_beside_it(self, trainer, tmp_path):
        with pytest.raises(ValueError, match="Pass the sum, `loss=LossSum"):
            make(
                trainer.model,
                trainer.processing_class,
                tmp_path,
                ROWS,
                grid=range(5),
                options={"distribution_loss": "crps"},
                loss=CRPS(),
            )
