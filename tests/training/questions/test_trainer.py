"""`RegressionAwareTrainer` on rows of typed questions."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import make_tiny_llama
from datasets import Dataset
from support.questions import QUESTIONS, question_rows
from support.training import config
from transformers import AutoTokenizer

from raft_peft import RegressionAwareTrainer, RegressionPredictor
from raft_peft.data.questions.encoder import QuestionEncoder
from raft_peft.data.questions.row import QuestionRow
from raft_peft.prediction.opening import check_grid_is_known
from raft_peft.training.questions.trainer import QuestionTrainer


def as_table(rows):
    return Dataset.from_list([{name: json.dumps(value) for name, value in row.items()} for row in rows])


def make(model, tokenizer, folder, rows=None, options=None, **arguments):
    return RegressionAwareTrainer(
        model,
        config(folder, **{"padding_free": None, **(options or {})}),
        processing_class=tokenizer,
        train_dataset=as_table(rows or question_rows()),
        **arguments,
    )


def by_hand(model, tokenizer, rows):
    """The loss of every question that has a target, from the full logits of one prompt at a time."""
    losses = []
    for row in QuestionEncoder(tokenizer).encode([QuestionRow.of(one) for one in rows], require_targets=True):
        for asked in row:
            log_probs = []
            for ways in asked.label_token_ids:
                # Every label of these questions is one token, but a number may go on from another.
                ((token, *rest),) = ways
                assert not rest
                logits = model(input_ids=torch.tensor([asked.input_ids])).logits[0, -1].float()
                log_probs.append(logits.log_softmax(-1)[token])
            log_p = torch.stack(log_probs)
            values = torch.tensor(asked.question.values, dtype=torch.float32)
            shares = torch.zeros(len(values))
            for value, share in zip(asked.target.values, asked.target.shares, strict=True):
                order = values.argsort()
                above = order[(values[order] >= value).nonzero()[0, 0]]
                below = order[(values[order] <= value).nonzero()[-1, 0]]
                width = float(values[above] - values[below])
                part = 1.0 if width == 0 else (value - float(values[below])) / width
                shares[above] += share * part
                shares[below] += share * (1 - part) if width else 0
            loss = -(shares * log_p).sum()
            if not asked.question.is_choice:
                error = (log_p.softmax(0) * values).sum() - asked.target.mean
                loss = loss + (error / ((values.max() - values.min()) / 4)) ** 2
            losses.append(loss)
    return torch.stack(losses)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    """A real one, since labels such as "yes" must be one token."""
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture
def tiny_llama(tokenizer):
    return make_tiny_llama(tokenizer)


@pytest.fixture
def rows():
    """Without the number, some of whose values begin with one token here."""
    asked = {name: one for name, one in QUESTIONS.items() if name != "price"}
    return [
        {**row, "questions": asked, "targets": {name: row["targets"][name] for name in asked}}
        for row in question_rows(6)
    ]


class TestLoss:
    @pytest.mark.parametrize("padding_free", [False, True])
    @pytest.mark.parametrize(("batch", "accumulated"), [(6, 1), (2, 3)])
    def test_and_gradients_are_those_of_the_full_logits(
        self, tiny_llama, tokenizer, tmp_path, rows, padding_free, batch, accumulated
    ):
        expected = by_hand(tiny_llama, tokenizer, rows)
        expected.mean().backward()
        gradients = {name: one.grad.clone() for name, one in tiny_llama.named_parameters() if one.grad is not None}
        tiny_llama.zero_grad()
        trainer = make(
            tiny_llama,
            tokenizer,
            tmp_path,
            rows,
            {
                "padding_free": padding_free,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": accumulated,
            },
        )
        model = trainer.accelerator.prepare(trainer.model)
        batches = list(trainer.get_train_dataloader())
        trainer.current_gradient_accumulation_steps = len(batches)
        count = trainer._get_num_items_in_batch(batches, trainer.args.device)
        assert int(count) == len(expected) == 18
        loss = sum(trainer.training_step(model, one, count) for one in batches)
        torch.testing.assert_close(loss, expected.mean().detach(), rtol=1e-5, atol=1e-5)
        for name, one in trainer.model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(one.grad, gradients[name], rtol=1e-4, atol=1e-5)

    def test_with_weights(self, tiny_llama, tokenizer, tmp_path, rows):
        expected = by_hand(tiny_llama, tokenizer, rows).detach()
        weights = torch.tensor([3.0, 1, 1] * 6)
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, {"question_weights": '{"anger": 3}'})
        batches = list(trainer.get_train_dataloader())
        trainer.current_gradient_accumulation_steps = 1
        count = trainer._get_num_items_in_batch(batches, trainer.args.device)
        loss = sum(trainer.training_step(trainer.model, one, count) for one in batches)
        torch.testing.assert_close(loss, (expected * weights).sum() / weights.sum(), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """A trainer that has seen all types of questions, some without a target, and its folder."""
    tiny_llama = make_tiny_llama(tokenizer)
    folder = tmp_path_factory.mktemp("questions")
    options = {"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_strategy": "no"}
    trainer = make(tiny_llama, tokenizer, folder, options=options, eval_dataset=as_table(question_rows(5)))
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model(str(folder))
    return trainer, folder, before, after


class TestTraining:
    def test_learns_all_questions(self, trained):
        trainer, _, before, after = trained
        assert isinstance(trainer, QuestionTrainer)
        assert after["eval_loss"] < before["eval_loss"] / 2
        for name in ("anger_rmse", "spam_nll", "kind_kl", "price_label_mass", "macro_nll"):
            assert math.isfinite(after[f"eval_{name}"])
        assert after["eval_macro_nll"] < before["eval_macro_nll"]

    def test_evaluates_in_batches_of_any_size_alike(self, trained):
        trainer, *_ = trained
        whole = as_table([row for row in question_rows(10) if "price" in row["targets"]])
        trainer.args.per_device_eval_batch_size = 3
        three = trainer.predict(whole)
        trainer.args.per_device_eval_batch_size = 5
        five = trainer.predict(whole)
        assert three.metrics.keys() == five.metrics.keys()
        for name in ("test_loss", "test_anger_rmse", "test_price_rmse"):
            assert three.metrics[name] == pytest.approx(five.metrics[name], abs=1e-4)

    def test_asks_what_has_no_target_only_to_predict(self, trained):
        trainer, *_ = trained
        rows = as_table(question_rows(5))
        found = trainer.predict(rows)
        assert (found.predictions["question"] >= 0).all()
        assert found.predictions["predictions"].shape == (5, 4)
        assert "test_loss" not in found.metrics
        assert math.isfinite(trainer.evaluate(rows)["eval_loss"])
        # The last question has a target in two of five rows.
        assert len(trainer.evaluations["eval"].labels) == 5 * 3 + 2

    def test_the_folder_answers_alike(self, trained):
        trainer, folder, *_ = trained
        rows = question_rows(5)
        predictor = RegressionPredictor.from_pretrained(folder)
        answers = predictor.decide_rows([{"state": row["state"]} for row in rows])
        found = trainer.predict(as_table(rows)).predictions
        of_anger = [answer["anger"].value for answer in answers]
        np.testing.assert_allclose(of_anger, found["predictions"][:, 0], atol=1e-5)
        (one,) = {answer["kind"].value for answer in answers}
        assert one in ("letter", "bill")
        for answer in answers[0].values():
            assert sum(answer.probabilities.values()) == pytest.approx(1)
            assert 0 < answer.label_mass <= 1
        assert list(answers[0]["spam"].probabilities) == ["yes", "no"]
        assert answers[0]["spam"].value == answers[0]["spam"].probabilities["yes"]
        assert predictor.decide(rows[0]["state"]).keys() == QUESTIONS.keys()

    def test_the_folder_has_no_grid_and_says_so(self, trained):
        _, folder, *_ = trained
        predictor = RegressionPredictor.from_pretrained(folder)
        with pytest.raises(ValueError, match="This predictor has no grid"):
            predictor.predict(["It costs"])
        with_grid = RegressionPredictor.from_pretrained(folder, grid=[0, 1, 2])
        assert with_grid.predict(["It costs"]).shape == (1,)

    def test_what_is_for_numbers_refuses_the_folder(self, trained):
        _, folder, *_ = trained
        with pytest.raises(ValueError, match=r"was trained on typed questions, and has no grid"):
            check_grid_is_known(str(folder), None, {})

    def test_the_card_shows_the_questions(self, trained):
        _, folder, *_ = trained
        card = (folder / "README.md").read_text()
        assert "anger (score), spam (predicate), kind (choice), price (number)" in card
        assert 'predictor.decide("...")' in card
        assert "| anger_rmse |" in card


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"grid": [1, 2]}, {}, "`grid` is for rows of `prompt` and `label`"),
        ({"loss": torch.nn.MSELoss(reduction="none")}, {}, "`loss` is for rows of"),
        ({"compute_metrics": lambda evaluated: {}}, {}, "`compute_metrics` gets one number a row"),
        ({}, {"method": "ce"}, "Method 'ce' cannot answer typed questions"),
        ({}, {"label_column": "stars"}, "`label_column='stars'` is for rows of `prompt`"),
        ({}, {"log_predictions": 3}, "`log_predictions=3` is for rows of .* Leave it out."),
        ({}, {"question_weights": "tone=2"}, "`question_weights` is 'tone=2', which is not JSON"),
        ({}, {"question_weights": {"calm": 2}}, "`question_weights` has a weight for 'calm'"),
        ({}, {"question_weights": {"anger": 0}}, "gives 'anger' the weight 0"),
    ],
)
def test_what_is_for_rows_of_one_number_is_refused(tiny_llama, tokenizer, tmp_path, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_llama, tokenizer, tmp_path, options=options, **arguments)


def test_rows_are_grouped_by_their_longest_prompts(tiny_llama, tokenizer, tmp_path):
    trainer = make(tiny_llama, tokenizer, tmp_path, options={"train_sampling_strategy": "group_by_length"})
    sampler = trainer.get_train_dataloader().batch_sampler.sampler
    assert sampler.lengths == [max(map(len, ids)) for ids in trainer.train_dataset["input_ids"]]


def test_a_stream_of_questions_is_refused(tiny_llama, tokenizer, tmp_path):
    stream = as_table(question_rows()).to_iterable_dataset()
    with pytest.raises(ValueError, match="The train dataset is a stream"):
        RegressionAwareTrainer(
            tiny_llama, config(tmp_path, max_steps=1), processing_class=tokenizer, train_dataset=stream
        )


def test_rows_with_one_number_need_a_grid(tiny_llama, tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": "It is", "label": 1.0}])
    with pytest.raises(ValueError, match="There is no grid"):
        RegressionAwareTrainer(tiny_llama, config(tmp_path), processing_class=tokenizer, train_dataset=rows)
