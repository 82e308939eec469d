"""What divides the probabilities by their sum over the grid where nobody says so: a grid of numbers around 0."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_byte_level, make_tiny_llama
from support.completions_server import CompletionsServer
from support.training import make

from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.renormalization import renormalizes, resolve_renormalize
from raft_peft.prediction.remote.predictor import RemoteRegressionPredictor

AROUND_ZERO = {-2: "a", -1: "b", 0: "c", 1: "d", 2: "e"}
ROWS = [{"prompt": f"Rate item {i}, the score is", "label": float((-1, 1)[i % 2])} for i in range(4)]
PROMPTS = [row["prompt"] for row in ROWS]
MESSAGE = "The grid has numbers below and above 0, -2 to 2, so its probabilities are divided by their sum."


def said(caplog):
    return [record.message for record in caplog.records if "divided by their sum" in record.message]


class TestWhatIsChosen:
    @pytest.mark.parametrize(
        ("grid", "expected"),
        [
            (range(-4, 5), True),
            ([-1, 1], True),
            (AROUND_ZERO, True),
            ([-0.5, 100], True),
            # What is off the grid counts as 0, which is the end of what these can predict.
            (range(1, 6), False),
            (range(6), False),
            ([-3, -2, -1], False),
            ([-3, 0], False),
            ([-5], False),
        ],
    )
    def test_by_the_grid(self, grid, expected):
        for method in ("raft", "rail", "mbr"):
            settings = MethodSettings(method=method)
            assert renormalizes(settings, NumberGrid(grid)) is expected
            resolve_renormalize(settings, NumberGrid(grid))
            assert settings.renormalize is expected

    @pytest.mark.parametrize("asked", [True, False])
    def test_what_is_asked_for_counts(self, asked, caplog):
        for grid in (range(-4, 5), range(1, 6)):
            settings = MethodSettings(renormalize=asked)
            resolve_renormalize(settings, NumberGrid(grid))
            assert settings.renormalize is asked
        assert not caplog.records

    def test_only_by_methods_that_take_it(self):
        for name, method in METHODS.items():
            settings = MethodSettings(method=name)
            resolve_renormalize(settings, NumberGrid(range(-1, 2)))
            assert settings.renormalize is ("renormalize" in method.takes)
            # As a folder holds it.
            settings.check_method()

    def test_and_said_once(self, caplog):
        settings = MethodSettings()
        for _ in range(2):
            resolve_renormalize(settings, NumberGrid(AROUND_ZERO))
        (line,) = said(caplog)
        assert line.startswith(MESSAGE)
        assert line.endswith("set `renormalize=False`.")
        resolve_renormalize(MethodSettings(), NumberGrid([1, 2]))
        assert len(caplog.records) == 1

    def test_by_a_method_of_a_comparison(self):
        around, above = NumberGrid(AROUND_ZERO), NumberGrid([1, 2])
        for label, expected in [
            ("raft", [True, False]),
            ("raft:renormalize=false", [False, False]),
            ("raft:renormalize=true", [True, True]),
            ("special_token", [False, False]),
            ("encoder_cls:frozen=true", [False, False]),
        ]:
            assert [ComparedMethod.parse(label).renormalizes(grid) for grid in (around, above)] == expected


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    tokenizer = make_byte_level()
    folder = tmp_path_factory.mktemp("around")
    trainer = make(make_tiny_llama(tokenizer), tokenizer, folder, ROWS, grid=AROUND_ZERO, options={"max_steps": 1})
    trainer.train()
    trainer.save_model()
    return trainer


class TestAGridAroundZero:
    def test_is_trained_saved_and_shown_as_renormalized(self, trainer):
        folder = Path(trainer.args.output_dir)
        assert trainer.args.renormalize is True
        assert json.loads((folder / "raft_config.json").read_text(encoding="utf-8"))["renormalize"] is True
        assert "| Renormalized over the grid | yes |" in (folder / "README.md").read_text(encoding="utf-8")
        # sum y p(y) / sum p(y), which a mass of a few percent would hold near 0 otherwise.
        found = trainer.predict(trainer.train_dataset)
        p = found.distribution.probs.double().numpy()
        assert (p.sum(-1) < 0.2).all()
        np.testing.assert_allclose(found.predictions, p @ [-2, -1, 0, 1, 2] / p.sum(-1), atol=1e-5)
        squared = np.square(found.predictions - found.label_ids).mean()
        assert found.metrics["test_loss"] == pytest.approx(squared, abs=1e-5)

    def test_is_read_as_saved_and_as_asked_for(self, trainer, caplog):
        predictor = RegressionPredictor.from_pretrained(trainer.args.output_dir)
        assert not said(caplog)
        predictions = predictor.predict(PROMPTS)
        np.testing.assert_allclose(predictions, trainer.predict(trainer.train_dataset).predictions, atol=1e-5)
        whole = RegressionPredictor.from_pretrained(trainer.args.output_dir, renormalize=False)
        mass = predictor.predict_distribution(PROMPTS).mass.numpy()
        np.testing.assert_allclose(whole.predict(PROMPTS), predictions * mass, atol=1e-5)
        assert not said(caplog)

    def test_zero_shot_here_and_off_a_server(self, trainer, caplog):
        model, tokenizer = trainer.model, trainer.processing_class
        predictor = RegressionPredictor(model, tokenizer, AROUND_ZERO, method="rail")
        assert predictor.settings.renormalize is True
        assert len(said(caplog)) == 1
        with CompletionsServer(model, tokenizer, "vllm").running() as url:
            remote = RemoteRegressionPredictor(url, "around", AROUND_ZERO, tokenizer=tokenizer, method="rail")
            np.testing.assert_allclose(remote.predict(PROMPTS), predictor.predict(PROMPTS), atol=1e-4)
        assert remote.settings.renormalize is True
        assert len(said(caplog)) == 2

    def test_is_as_text_beside_its_expectation(self, trainer, tmp_path):
        # `rail_*` of a method that reads text are those that method `rail` gives.
        rail = RegressionPredictor(trainer.model, trainer.processing_class, AROUND_ZERO, method="rail")
        of_text = make(trainer.model, trainer.processing_class, tmp_path, grid=AROUND_ZERO, options={"method": "ce"})
        assert of_text.args.renormalize is False
        np.testing.assert_allclose(of_text.predict(ROWS).rail, rail.predict(PROMPTS), atol=1e-5)
        settings = of_text._raft_config().settings_for("rail")
        assert "renormalize" not in settings
