"""A grid of one number: trained, saved and read wherever its prediction can differ from prompt to prompt."""

import numpy as np
import pytest
import torch
from conftest import make_byte_level, make_tiny_llama
from support.completions_server import CompletionsServer
from support.training import make

from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.methods import MethodSettings
from raft_peft.methods.grid_check import check_grid
from raft_peft.prediction.evaluation import evaluate_rows
from raft_peft.prediction.pipeline import TextRegressionPipeline
from raft_peft.prediction.remote.predictor import RemoteRegressionPredictor

# Items of two kinds, with labels at both ends of what 5 p(5 | x) reaches.
ROWS = [{"prompt": f"Rate item {i}, the score is", "label": 4.0 if i < 5 else 1.0} for i in range(10)]
PROMPTS = [row["prompt"] for row in ROWS]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    tokenizer = make_byte_level()
    options = {"max_steps": 30, "per_device_train_batch_size": 10, "learning_rate": 1e-2, "seed": 0}
    folder = tmp_path_factory.mktemp("five")
    trainer = make(make_tiny_llama(tokenizer), tokenizer, folder, ROWS, grid=[5], options=options)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def predictor(trainer):
    return RegressionPredictor.from_pretrained(trainer.args.output_dir)


class TestOfANumberAlone:
    def test_it_learns_numbers_between_0_and_itself(self, predictor):
        assert predictor.grid == NumberGrid([5])
        metrics = evaluate_rows(predictor, ROWS).metrics
        # The mean alone, 2.5, has an RMSE of 1.5.
        assert metrics["rmse"] < 1
        assert metrics["pearson"] > 0.7
        assert metrics["entropy"] == 0
        assert 0 < metrics["grid_mass"] < 1
        assert all(np.isfinite(list(metrics.values())))

    def test_it_is_5_times_its_probability(self, trainer, predictor):
        distribution = predictor.predict_distribution(PROMPTS)
        assert distribution.probs.shape == (10, 1)
        assert distribution.entropy.tolist() == [0] * 10
        predictions = predictor.predict(PROMPTS)
        np.testing.assert_allclose(predictions, 5 * distribution.mass.numpy(), rtol=1e-6)
        tokenizer = predictor.tokenizer
        with torch.no_grad():
            ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
            p = predictor.model(ids).logits[0, -1].softmax(-1)[tokenizer.convert_tokens_to_ids("Ġ5")].item()
        assert predictions[0] == pytest.approx(5 * p, abs=1e-5)
        np.testing.assert_allclose(trainer.predict(trainer.train_dataset).predictions, predictions, atol=1e-5)

    def test_in_a_pipeline_and_off_a_server(self, predictor):
        expected = predictor.predict(PROMPTS)
        pipeline = TextRegressionPipeline(model=predictor.model, tokenizer=predictor.tokenizer, grid=[5])
        assert [found["prediction"] for found in pipeline(PROMPTS)] == pytest.approx(expected, abs=1e-5)
        # A server that returns few tokens is asked again where 5 is not among them, and what it returns suffices.
        for like in ("vllm", "llama"):
            server = CompletionsServer(predictor.model, predictor.tokenizer, like)
            with server.running() as url:
                remote = RemoteRegressionPredictor(url, "five", [5], tokenizer=predictor.tokenizer)
                np.testing.assert_allclose(remote.predict(PROMPTS), expected, atol=5e-3)
                assert remote._negligible == pytest.approx(5e-3)

    def test_intervals_and_no_temperature(self, trainer):
        predictor = RegressionPredictor.from_pretrained(trainer.args.output_dir)
        calibration = predictor.calibrate(PROMPTS, [row["label"] for row in ROWS])
        assert calibration.temperature is None
        assert (calibration.low, calibration.high) == (0, 5)
        predictions, low, high = predictor.predict(PROMPTS, interval=0.9)
        assert (low <= predictions).all() and (predictions <= high).all()
        with pytest.raises(ValueError, match=r"one number 5 has the probability 1 at any temperature. Leave `cali"):
            predictor.predict_distribution(PROMPTS, calibrated=True)

    def test_the_untrained_model_is_not_told_to_renormalise(self, trainer, caplog):
        # Its probability of 5 is about that of any token of its vocabulary, 1 / 400.
        tokenizer = make_byte_level()
        RegressionPredictor(make_tiny_llama(tokenizer), tokenizer, [5]).predict(PROMPTS)
        (said,) = [record.message for record in caplog.records if "near 0" in record.message]
        assert "Train until its probability follows the labels" in said

    def test_labels_from_0_to_it_are_within_reach(self, predictor, caplog):
        predictor.remarks().on_labels([0.0, 2.5, 5.0])
        assert not caplog.records
        predictor.remarks().on_labels([-1.0, 2.5, 6.0])
        assert "2 of the 3 labels (-1 to 6) lie outside what this grid can express, 0 to 5." in caplog.text

    def test_a_decision_that_could_only_say_5_is_refused_before_the_model_is_opened(self, trainer, monkeypatch):
        monkeypatch.setattr("raft_peft.prediction.opening.open_as_trained", None)
        for options, reason in [({"decision": "median"}, "Leave it at 'mean'"), ({"renormalize": True}, "by itself")]:
            with pytest.raises(ValueError, match=reason):
                RegressionPredictor.from_pretrained(trainer.args.output_dir, **options)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("settings", "grid"),
        [
            ({}, [5]),
            ({}, [-2.5]),
            ({"decision": "median", "renormalize": True}, [5, 6]),
            ({"method": "rail", "num_samples": 4}, [5]),
            ({"method": "mbr", "num_samples": 4}, [5]),
            ({"method": "ce"}, [0]),
            ({"method": "zero_shot"}, [5]),
            ({"method": "learnable_raft"}, [0]),
            ({"method": "special_token"}, [5]),
        ],
    )
    def test_what_can_differ_is_taken(self, settings, grid):
        check_grid(MethodSettings(**settings), NumberGrid(grid))

    @pytest.mark.parametrize(
        ("settings", "grid", "reason"),
        [
            ({}, [0], "holds 0 alone. The prediction is .* 0 for every prompt. Take another number, or give"),
            ({"renormalize": True}, [5], "divided by itself, so every prediction would be 5. Set `renormalize=False`"),
            ({"decision": "mode"}, [5], "`decision='mode'` chooses .* every prediction would be 5"),
            ({"method": "rail", "decision": "quantile:0.9"}, [5], "`decision='quantile:0.9'` chooses"),
            ({"method": "learnable_raft", "decision": "median"}, [5], "`decision='median'` chooses"),
            ({"method": "mbr"}, [5], "least where its probability is 0, whatever the target. Set `num_samples`"),
            ({"method": "log_loss"}, [5], "between the least and the greatest"),
            ({"method": "ce", "constrained": True}, [5], "every text would be 5. Leave it off"),
        ],
    )
    def test_what_is_always_the_same_is_refused(self, settings, grid, reason):
        with pytest.raises(ValueError, match=reason):
            check_grid(MethodSettings(**settings), NumberGrid(grid))

    def test_by_all_that_take_a_grid(self, tiny_llama, tokenizer, tmp_path):
        for grid in ([0], {0: "zero"}):
            with pytest.raises(ValueError, match="holds 0 alone"):
                make("no such model", tokenizer, tmp_path, ROWS, grid=grid)
            with pytest.raises(ValueError, match="holds 0 alone"):
                RegressionPredictor(tiny_llama, tokenizer, grid)
            with pytest.raises(ValueError, match="holds 0 alone"):
                RemoteRegressionPredictor("http://localhost:1", "five", grid, tokenizer=tokenizer)
