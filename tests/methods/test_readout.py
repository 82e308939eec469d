"""Every method: its numbers against a computation written from the paper's table, overfitting, saving and loading."""

import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig
from safetensors.torch import load_file
from support import training
from support.training import GRID, lora
from torch.utils.data import DataLoader
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor
from raft_peft.data.batches import RegressionCollator
from raft_peft.forward.decoding import MAX_NEW_TOKENS
from raft_peft.methods import METHODS, MethodSettings

VARIANTS = {
    "raft": {},
    "raft renormalised": {"method": "raft", "renormalize": True},
    "rail": {},
    "zero_shot": {},
    "ce": {},
    "mbr": {},
    "mbr renormalised": {"method": "mbr", "renormalize": True},
    "mbr sampled": {"method": "mbr", "num_samples": 4, "renormalize": True},
    "log_loss": {},
    "crps": {},
    "soft_ce": {},
    "rps": {},
    "number_token_loss": {},
    "raft with crps": {"method": "raft", "distribution_loss": "crps", "distribution_weight": 0.5},
    "raft with soft_ce": {"method": "raft", "distribution_loss": "soft_ce"},
    "learnable_raft": {},
    "learnable_raft vocabulary": {"method": "learnable_raft", "weights": "vocabulary"},
    "special_token": {},
    "special_token named": {"method": "special_token", "special_token": "<unk>"},
    "logits_mlp": {"mlp_width": 8},
    "pooled mean": {"method": "pooled"},
    "pooled min": {"method": "pooled", "pooling": "min"},
    "pooled max": {"method": "pooled", "pooling": "max"},
    "probability_projection": {},
}
EPOCHS = {"logits_mlp": 250, "probability_projection": 250}  # which start far from where they end
LEARNING_RATE = {"logits_mlp": 5e-3}  # whose sigmoids saturate for good
TRAINED = [name for name, options in VARIANTS.items() if METHODS[options.get("method", name)].trains]


def settings(name):
    return {"method": name, **VARIANTS[name]}


def make(model, tokenizer, folder, rows, name="raft", *, options=None, **arguments):
    return training.make(model, tokenizer, folder, rows, options={**settings(name), **(options or {})}, **arguments)


class ByHand:
    """Everything of the table for one row alone, in float64, from the full logits and hidden states of the model."""

    def __init__(self, model, tokenizer, prompt):
        self.model, self.tokenizer = model, tokenizer
        self.ids = tokenizer(prompt).input_ids
        with torch.no_grad():
            outputs = model(torch.tensor([self.ids]), output_hidden_states=True)
        self.logits = outputs.logits[0, -1].double()
        self.embeddings = outputs.hidden_states[-1][0].double()
        self.vocabulary = torch.softmax(self.logits, -1)
        self.p = [self.vocabulary[tokenizer.convert_tokens_to_ids(f"Ġ{y}")].item() for y in GRID]

    def expectation(self, weights=GRID):
        return sum(w * p for w, p in zip(weights, self.p, strict=True))

    def prediction(self, name, head):
        head = {key: value.double() for key, value in head.items()}
        match name:
            case "raft" | "rail" | "mbr" | "raft with crps" | "raft with soft_ce":
                return self.expectation()
            case "raft renormalised" | "mbr renormalised" | "mbr sampled":
                return self.expectation() / sum(self.p)
            case "crps" | "soft_ce" | "rps" | "number_token_loss":
                return self.expectation() / sum(self.p)
            case "log_loss":
                return 4 * self.p[-1]
            case "learnable_raft":
                return self.expectation(head["weight"].tolist())
            case "learnable_raft vocabulary":
                return (head["weight"] * self.vocabulary).sum().item()
            case "special_token":
                return (self.logits[2] + head["bias"]).item()  # <eos>
            case "special_token named":
                return (self.logits[0] + head["bias"]).item()  # <unk>
            case "logits_mlp":
                hidden = 1 / (1 + (-(head["inner_weight"] @ self.logits) - head["inner_bias"]).exp())
                return ((head["outer_weight"] * hidden).sum() + head["bias"]).item()
            case "pooled mean":
                return (self.embeddings.mean(0) @ head["weight"] + head["bias"]).item()
            case "pooled min":
                return (self.embeddings.min(0).values @ head["weight"] + head["bias"]).item()
            case "pooled max":
                return (self.embeddings.max(0).values @ head["weight"] + head["bias"]).item()
            case "probability_projection":
                return (self.vocabulary @ head["weight"] + head["bias"]).item()

    def loss(self, name, head, label):
        match name:
            case "mbr" | "mbr renormalised" | "mbr sampled":
                total = 1 if name == "mbr" else sum(self.p)
                return sum(p / total * (label - y) ** 2 for y, p in zip(GRID, self.p, strict=True))
            case "crps" | "rps":
                below = np.cumsum(self.p) / sum(self.p)
                # Of each gap of length 1, the part above the label has P(Y <= z) = 1.
                above = [min(max(k + 1 - label, 0), 1) for k in range(4)]
                parts = [(1 - part) * f**2 + part * (f - 1) ** 2 for f, part in zip(below, above, strict=False)]
                return sum(parts) / (4 if name == "rps" else 1) - math.log(sum(self.p))
            case "soft_ce" | "number_token_loss":
                distance = sum(p * abs(label - y) for y, p in zip(GRID, self.p, strict=True)) / sum(self.p)
                weight = 0.3 if name == "number_token_loss" else 0
                low, share = min(int(label), 3), label - min(int(label), 3)
                entropy = -(1 - share) * math.log(self.p[low]) - share * math.log(self.p[low + 1])
                return entropy + weight * distance
            case "raft with crps" | "raft with soft_ce":
                added = self.loss(name.removeprefix("raft with "), head, label)
                # On the grid 0 to 4 all losses weigh the same by default.
                return self.loss("raft", head, label) + (0.5 if name == "raft with crps" else 1) * added
            case "log_loss":
                t = label / 4
                return -t * math.log(self.p[-1]) - (1 - t) * math.log(1 - self.p[-1])
            case "ce":
                text = str(int(label)) if label == int(label) else str(label)
                target = [*self.tokenizer(f" {text}").input_ids, self.tokenizer.eos_token_id]
                with torch.no_grad():
                    logits = self.model(torch.tensor([self.ids + target])).logits[0].double()
                log_p = logits.log_softmax(-1)
                return -sum(log_p[len(self.ids) - 1 + i, token].item() for i, token in enumerate(target))
            case _:
                return (label - self.prediction(name, head)) ** 2


def head_of(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.readout.head.state_dict().items()}


def without_text(names):
    return [name for name in names if not METHODS[VARIANTS[name].get("method", name)].reads_text]


@pytest.mark.parametrize("name", without_text(VARIANTS))
def test_prediction_and_loss_by_hand(name, tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.double()  # so that the rounding of the model itself does not hide an error of the method
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, name)
    for parameter in trainer.readout.head.parameters():  # away from the initial values, where a wrong weight may hide
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    head = head_of(trainer)
    output = trainer.predict(Dataset.from_list(rows))
    alone = [ByHand(tiny_llama, tokenizer, row["prompt"]) for row in rows]
    expected = [row.prediction(name, head) for row in alone]
    np.testing.assert_allclose(output.predictions, expected, rtol=2e-6, atol=2e-6)
    losses = [by_hand.loss(name, head, row["label"]) for by_hand, row in zip(alone, rows, strict=True)]
    assert output.metrics["test_loss"] == pytest.approx(np.mean(losses), rel=2e-6)


def test_cross_entropy_by_hand(tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.double()
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, "ce")
    alone = [ByHand(tiny_llama, tokenizer, row["prompt"]) for row in rows]
    losses = [by_hand.loss("ce", {}, row["label"]) for by_hand, row in zip(alone, rows, strict=True)]
    output = trainer.predict(Dataset.from_list(rows))
    assert output.metrics["test_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    # The same loss trains: the mean over the examples of the step.
    batch = next(iter(DataLoader(trainer.train_dataset, batch_size=8, collate_fn=trainer.data_collator)))
    assert trainer.compute_loss(tiny_llama, batch).item() == pytest.approx(np.mean(losses), rel=1e-6)
    rail = [row.expectation() for row in alone]
    labels = [row["label"] for row in rows]
    assert output.metrics["test_rail_rmse"] == pytest.approx(
        np.sqrt(np.mean(np.subtract(rail, labels) ** 2)), rel=1e-5
    )
    assert {"test_rmse", "test_parsed", "test_rail_spearman", "test_grid_mass"} <= set(output.metrics)


@pytest.mark.parametrize("name", ["zero_shot", "ce"])
def test_decoded_numbers_by_hand(name, smollm2, tmp_path):
    """SmolLM2 decodes greedily, one row alone, token by token; what is no number counts as 0."""
    prompts = ["2 + 2 =", "Count: one, two, three,", "The number of legs of a dog is", "1, 2, 3, 4,"]
    rows = [{"prompt": prompt, "label": float(label)} for label, prompt in enumerate(prompts)]
    trainer = make(str(smollm2), None, tmp_path, rows, name)
    model, tokenizer = trainer.model, trainer.processing_class
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt + " ").input_ids
        start = len(ids)
        with torch.no_grad():
            for _ in range(MAX_NEW_TOKENS):
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
                if ids[-1] == tokenizer.eos_token_id:
                    break
        text = tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        digits = "".join(character if character.isdigit() else " " for character in text).split()
        expected.append(float(digits[0]) if digits else 0.0)
    output = trainer.predict(Dataset.from_list(rows))
    np.testing.assert_array_equal(output.predictions, expected)
    assert any(expected)
    assert 0 < output.metrics["test_parsed"] <= 1


def sixteen_rows():
    return [
        {"prompt": f"Rate item {index * 17} with {'tea' * (index % 5)}, the score is", "label": float(index % 5)}
        for index in range(16)
    ]


# Beside `soft_ce` and `raft with crps` these would show nothing more.
OVERFITTED = [name for name in TRAINED if name not in ("mbr", "rps", "number_token_loss", "raft with soft_ce")]


@pytest.mark.parametrize("name", OVERFITTED)
def test_overfits_sixteen_rows_and_comes_back_exactly(name, tiny_llama, tokenizer, tmp_path):
    """Not `mbr` over the whole vocabulary: its minimum lies off the grid, where there is no error to pay."""
    rows = sixteen_rows()
    torch.nn.init.normal_(tiny_llama.lm_head.weight, std=0.02)  # a grid that starts uniform, none of it out of reach
    trainer = make(
        tiny_llama,
        tokenizer,
        tmp_path,
        rows,
        name,
        options={
            "num_train_epochs": EPOCHS.get(name, 75),
            "per_device_train_batch_size": 16,
            "learning_rate": LEARNING_RATE.get(name, 1e-2),
            "logging_strategy": "no",
        },
    )
    before = head_of(trainer)
    trainer.train()
    metrics = trainer.evaluate(Dataset.from_list(rows))
    assert metrics["eval_rmse"] < 0.25, metrics
    if not name.startswith("log_loss"):
        assert metrics["eval_pearson"] > 0.98
    for key, tensor in head_of(trainer).items():
        assert not torch.equal(tensor, before[key]), key

    trainer.save_model()
    predictor = RegressionPredictor.from_pretrained(tmp_path)
    prompts = [row["prompt"] for row in rows]
    expected = trainer.predict(Dataset.from_list(rows)).predictions
    np.testing.assert_allclose(predictor.predict(prompts, batch_size=5), expected, atol=1e-5)
    for key, tensor in head_of(trainer).items():
        assert torch.equal(tensor, predictor.readout.head.state_dict()[key])
    names = load_file(tmp_path / "model.safetensors").keys()
    assert not [key for key in names if "regression_head" in key]


@pytest.mark.parametrize("name", ["learnable_raft", "learnable_raft vocabulary", "logits_mlp", "pooled max"])
def test_heads_under_lora_train_resume_and_come_back(name, tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.save_pretrained(tmp_path / "base")
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05}
    arguments = (str(tmp_path / "base"), tokenizer, tmp_path / "run", rows, name)
    whole = make(*arguments, peft_config=lora(), options=options)
    start = head_of(whole)
    whole.train()
    for key, tensor in head_of(whole).items():
        assert not torch.equal(tensor, start[key]), key

    resumed = make(*arguments, peft_config=lora(), options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for key, tensor in head_of(whole).items():
        torch.testing.assert_close(head_of(resumed)[key], tensor)

    expected = whole.predict(Dataset.from_list(rows)).predictions
    predictor = RegressionPredictor.from_pretrained(tmp_path / "run" / "checkpoint-4")
    np.testing.assert_allclose(predictor.predict([row["prompt"] for row in rows]), expected, atol=1e-5)


def test_the_best_head_is_loaded_at_the_end(tiny_llama, tokenizer, tmp_path, rows):
    options = {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "rmse",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    trainer = make(
        tiny_llama,
        tokenizer,
        tmp_path,
        rows,
        "pooled mean",
        peft_config=lora(),
        options=options,
        eval_dataset=Dataset.from_list([{**row, "label": 100.0} for row in rows]),
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    for key, tensor in head_of(trainer).items():
        assert torch.equal(tensor, load_file(f"{best}/regression_head.safetensors")[key])


def test_heads_stay_float32_on_a_bf16_base(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(
        tiny_llama.to(torch.bfloat16),
        tokenizer,
        tmp_path,
        rows,
        "pooled mean",
        peft_config=lora(),
        options={"bf16": True, "max_steps": 2, "learning_rate": 1e-6},
    )
    before = head_of(trainer)
    trainer.train()
    after = head_of(trainer)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    # A step of 1e-6 on a bias of 2 would vanish in bf16, whose next number is 2.016.
    assert 0 < (after["bias"] - before["bias"]).abs().item() < 1e-5


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "telepathy"}, "`method='telepathy'` does not exist. Use one of raft, rail"),
            ({"decision": "middle"}, "no decision rule 'middle'. Use mean, median"),
            ({"decision": "quantile:1.5"}, "no decision rule 'quantile:1.5'"),
            ({"attention": "sideways"}, "`attention='sideways'` does not exist"),
            ({"method": "ce", "attention": "bidirectional"}, "generated from left to right"),
            ({"method": "zero_shot", "attention": "bidirectional"}, "generated from left to right"),
            ({"method": "rail", "num_samples": 8, "attention": "bidirectional"}, "cannot be sampled from"),
            ({"method": "rail", "num_samples": 8, "decision": "mode"}, "mean of its samples"),
            ({"method": "pooled", "decision": "median"}, "without a distribution"),
            ({"method": "pooled", "renormalize": True}, "no distribution over the grid to renormalize"),
            ({"method": "raft", "pooling": "max"}, "does nothing with method 'raft'.*use the method pooled"),
            ({"method": "mbr", "num_samples": 1}, "`num_samples=1` is too few"),
            ({"method": "logits_mlp", "mlp_width": 0}, "`mlp_width=0`"),
            ({"method": "learnable_raft", "weights": "vocabulary", "decision": "mode"}, "one number"),
        ],
    )
    def test_what_does_not_go_together(self, options, message):
        with pytest.raises(ValueError, match=message):
            RegressionAwareConfig("out", **options)

    def test_every_setting_is_taken_by_some_method(self):
        taken = {setting for method in METHODS.values() for setting in method.takes}
        assert taken == {*MethodSettings().method_settings()} - {"method"}

    def test_the_folder_says_how_it_was_trained(self, tiny_llama, tokenizer, tmp_path, rows):
        make(tiny_llama, tokenizer, tmp_path, rows, "pooled max").save_model()
        written = json.loads((tmp_path / "raft_config.json").read_text())
        assert (written["method"], written["pooling"], written["head"]) == ("pooled", "max", None)


class TestRefusals:
    @pytest.mark.parametrize("name", ["rail", "zero_shot"])
    def test_zero_shot_methods_do_not_train(self, name, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, name)
        with pytest.raises(ValueError, match="has no loss to train on"):
            trainer.train()

    def test_log_loss_beyond_the_grid(self, tiny_llama, tokenizer, tmp_path, rows):
        with pytest.raises(ValueError, match=r"row 1: the label 4.5 lies outside 0 to 4"):
            make(tiny_llama, tokenizer, tmp_path, [rows[0], {**rows[1], "label": 4.5}], "log_loss")

    def test_a_special_token_that_is_none(self, tiny_llama, tokenizer, tmp_path, rows):
        with pytest.raises(ValueError, match="no token '<nope>'"):
            make(tiny_llama, tokenizer, tmp_path, rows, "special_token", options={"special_token": "<nope>"})

    def test_targets_that_the_grid_cannot_write(self, tiny_llama, tokenizer, tmp_path, rows):
        arguments = RegressionAwareConfig(str(tmp_path), method="ce", report_to="none", bf16=False)
        with pytest.raises(ValueError, match=r"row 1: the label 0.5 has no text"):
            RegressionAwareTrainer(
                tiny_llama,
                arguments,
                grid={0: "a", 1: "b"},
                processing_class=tokenizer,
                train_dataset=Dataset.from_list(rows[:2]),
            )

    def test_weights_of_the_vocabulary_need_a_row(self, tiny_llama, tokenizer, tmp_path):
        arguments = RegressionAwareConfig(
            str(tmp_path), method="learnable_raft", weights="vocabulary", report_to="none", bf16=False
        )
        with pytest.raises(ValueError, match="not known before a row is seen"):
            RegressionAwareTrainer(tiny_llama, arguments, grid=GRID, processing_class=tokenizer)

    def test_a_missing_head_file(self, tiny_llama, tokenizer, tmp_path, rows):
        make(tiny_llama, tokenizer, tmp_path, rows, "pooled mean").save_model()
        (tmp_path / "regression_head.safetensors").unlink()
        with pytest.raises(ValueError, match=r"has no regression_head\.safetensors"):
            RegressionPredictor.from_pretrained(tmp_path)

    def test_a_head_of_other_sizes(self, tiny_llama, tokenizer, tmp_path, rows):
        make(tiny_llama, tokenizer, tmp_path, rows, "logits_mlp").save_model()
        written = json.loads((tmp_path / "raft_config.json").read_text())
        (tmp_path / "raft_config.json").write_text(json.dumps({**written, "mlp_width": 9}))
        with pytest.raises(ValueError, match=r"does not fit the head of method 'logits_mlp'"):
            RegressionPredictor.from_pretrained(tmp_path)


class TestOfYourOwn:
    """A loss or a head from outside the package."""

    def test_a_loss_of_torch(self, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, loss=torch.nn.HuberLoss(reduction="none", delta=0.5))
        output = trainer.predict(Dataset.from_list(rows))
        errors = np.abs(output.predictions - output.label_ids)
        huber = np.where(errors < 0.5, 0.5 * errors**2, 0.5 * (errors - 0.25))
        assert output.metrics["test_loss"] == pytest.approx(huber.mean(), rel=1e-5)
        assert math.isfinite(trainer.train().training_loss)

    def test_a_reduced_loss_is_refused(self, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, loss=torch.nn.MSELoss())
        with pytest.raises(ValueError, match=r"shape \(\).*reduction='none'"):
            trainer.train()

    def test_a_loss_beside_cross_entropy_is_refused(self, tiny_llama, tokenizer, tmp_path, rows):
        with pytest.raises(ValueError, match="`loss` cannot be used with method 'ce'"):
            make(tiny_llama, tokenizer, tmp_path, rows, "ce", loss=torch.nn.HuberLoss(reduction="none"))

    def test_a_loss_of_the_distribution_needs_one(self, tiny_llama, tokenizer, tmp_path, rows):
        from raft_peft.losses import ExpectedSquaredError

        trainer = make(tiny_llama, tokenizer, tmp_path, rows, "pooled mean", loss=ExpectedSquaredError())
        with pytest.raises(
            ValueError, match="ExpectedSquaredError reads a distribution, and PooledHead gives one number"
        ):
            trainer.train()

    def test_a_head(self, tiny_llama, tokenizer, tmp_path, rows):
        from raft_peft.heads import Head

        class TopLogit(Head):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(()))

            def forward(self, final, grid_token_ids):
                return self.scale * final.logits.float().amax(-1)

        trainer = make(tiny_llama, tokenizer, tmp_path, rows, head=TopLogit(), options={"max_steps": 2})
        trainer.train()
        trainer.save_model()
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        with pytest.raises(ValueError, match=r"head of your own.*TopLogit. Pass `head=`"):
            RegressionPredictor.from_pretrained(tmp_path)
        predictor = RegressionPredictor.from_pretrained(tmp_path, head=TopLogit())
        np.testing.assert_allclose(predictor.predict([row["prompt"] for row in rows]), expected, atol=1e-5)
        with pytest.raises(ValueError, match="gives one number a prompt"):
            predictor.predict_distribution(["the score is"])


class TestBidirectional:
    @pytest.mark.parametrize("name", ["raft", "pooled mean"])
    def test_predictions_come_back(self, name, tiny_llama, tokenizer, tmp_path, rows):
        causal = make(tiny_llama, tokenizer, tmp_path, rows, name).predict(Dataset.from_list(rows)).predictions
        trainer = make(
            tiny_llama, tokenizer, tmp_path, rows, name, options={"attention": "bidirectional", "max_steps": 2}
        )
        assert not np.allclose(trainer.predict(Dataset.from_list(rows)).predictions, causal, atol=1e-3)
        trainer.train()
        trainer.save_model()
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        predictor = RegressionPredictor.from_pretrained(tmp_path)
        np.testing.assert_allclose(predictor.predict([row["prompt"] for row in rows]), expected, atol=1e-5)


class TestRandomInit:
    def test_the_architecture_alone_is_kept(self, tiny_llama, tokenizer, tmp_path, rows):
        tiny_llama.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        options = {"init": "random", "max_steps": 1, "seed": 3}
        one, same = (make(str(tmp_path / "base"), None, tmp_path / "run", rows, options=options) for _ in range(2))
        assert one.model.config.hidden_size == 32
        weight, pretrained = (
            one.model.model.layers[0].mlp.up_proj.weight,
            tiny_llama.model.layers[0].mlp.up_proj.weight,
        )
        assert not torch.allclose(weight, pretrained, atol=1e-2)
        assert torch.equal(weight, same.model.model.layers[0].mlp.up_proj.weight)
        one.train()
        one.save_model()
        expected = one.predict(Dataset.from_list(rows)).predictions
        predictor = RegressionPredictor.from_pretrained(tmp_path / "run")
        np.testing.assert_allclose(predictor.predict([row["prompt"] for row in rows]), expected, atol=1e-5)

    def test_refusals(self, tiny_llama, tokenizer, tmp_path, rows):
        with pytest.raises(ValueError, match="needs the model's name"):
            make(tiny_llama, tokenizer, tmp_path, rows, options={"init": "random"})
        with pytest.raises(ValueError, match=r"trains all weights.*peft_config"):
            make("anything", tokenizer, tmp_path, rows, options={"init": "random"}, peft_config=lora())
        with pytest.raises(ValueError, match="`init='new'` does not exist"):
            RegressionAwareConfig(str(tmp_path), init="new")


class TestDecisions:
    def test_the_trainer_and_the_predictor_report_under_any(self, tiny_llama, tokenizer, tmp_path, rows):
        prompts = [row["prompt"] for row in rows]
        for rule in ("median", "mode", "quantile:0.9"):
            trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"decision": rule})
            output = trainer.predict(Dataset.from_list(rows))
            assert set(output.predictions) <= set(GRID)
            trainer.save_model()
            saved = RegressionPredictor.from_pretrained(tmp_path)
            np.testing.assert_array_equal(saved.predict(prompts), output.predictions)
            other = RegressionPredictor.from_pretrained(tmp_path, decision="mode").predict(prompts)
            p = output.distribution.probs.numpy()
            np.testing.assert_array_equal(other, np.array(GRID)[p.argmax(-1)])


def test_sampled_rail_is_the_mean_of_the_numbers_in_the_samples(smollm2):
    prompt = "Digits: 7, 3, 1, 9, 4, 2,"
    predictor = RegressionPredictor.from_pretrained(smollm2, grid=range(10), method="rail", num_samples=8)
    torch.manual_seed(0)
    predicted = predictor.predict([prompt])
    torch.manual_seed(0)
    ids = predictor.tokenizer(prompt + " ", return_tensors="pt")
    samples = predictor.model.generate(
        **ids,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=8,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    texts = predictor.tokenizer.batch_decode(samples[:, ids.input_ids.shape[1] :], skip_special_tokens=True)
    numbers = [float(match.group()) if (match := re.search(r"-?\d+(\.\d+)?", text)) else 0.0 for text in texts]
    assert len(set(numbers)) > 1
    np.testing.assert_allclose(predicted, [np.mean(numbers)], rtol=1e-6)


def test_a_head_on_a_quantized_base(tokenizer, tmp_path, rows):
    """Real NF4 weights: the head keeps its precision, trains beside the adapter, and comes back exactly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=1, eos_token_id=2, **sizes))
    base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    trainer = make(
        str(tmp_path / "base"),
        tokenizer,
        tmp_path / "run",
        rows,
        "pooled mean",
        peft_config=lora(),
        quantization_config=quantization,
        options={"bf16": True, "max_steps": 3, "learning_rate": 1e-3},
    )
    assert trainer.model.is_loaded_in_4bit
    before = head_of(trainer)
    trainer.train()
    after = head_of(trainer)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    for key, tensor in after.items():
        assert not torch.equal(tensor, before[key]), key
        assert not torch.equal(tensor, tensor.bfloat16().float()), key  # bits that bf16 would have lost
    trainer.save_model()
    predictor = RegressionPredictor.from_pretrained(tmp_path / "run", quantization_config=quantization)
    for key, tensor in after.items():
        assert torch.equal(tensor, predictor.readout.head.state_dict()[key])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = predictor.predict([row["prompt"] for row in rows], batch_size=3)
    np.testing.assert_allclose(predicted, trainer.predict(Dataset.from_list(rows)).predictions, atol=1e-2)


def test_a_distribution_that_was_returned_does_not_change_with_training(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(
        tiny_llama, tokenizer, tmp_path, rows, "learnable_raft", options={"max_steps": 2, "learning_rate": 0.1}
    )
    output = trainer.predict(Dataset.from_list(rows))
    values = output.distribution.values.clone()
    trainer.train()
    assert not torch.equal(trainer.readout.values, values)
    assert torch.equal(output.distribution.values, values)


class TestNothingOfTheHeadIsLost:
    def test_an_optimizer_that_does_not_know_it(self, tiny_llama, tokenizer, tmp_path, rows):
        optimizer = torch.optim.SGD(tiny_llama.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="has parameters that the optimizer you pass does not know"):
            make(tiny_llama, tokenizer, tmp_path, rows, "pooled mean", optimizers=(optimizer, None))
        make(tiny_llama, tokenizer, tmp_path, rows, "raft", optimizers=(optimizer, None))

    @pytest.mark.parametrize("name", ["special_token", "pooled mean", "learnable_raft"])
    def test_full_bf16_evaluation_keeps_its_precision(self, name, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, name, options={"bf16_full_eval": True})
        before = head_of(trainer)
        trainer.evaluate(Dataset.from_list(rows))
        for key, tensor in head_of(trainer).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, before[key])

    def test_training_goes_on_from_a_folder(self, tiny_llama, tokenizer, tmp_path, rows):
        trained = make(tiny_llama, tokenizer, tmp_path / "one", rows, "pooled mean", options={"max_steps": 3})
        trained.train()
        trained.save_model()
        again = make(str(tmp_path / "one"), None, tmp_path / "two", rows, "pooled mean")
        for key, tensor in head_of(trained).items():
            assert torch.equal(tensor, head_of(again)[key])

    def test_a_predictor_of_the_trained_model(self, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, "pooled mean", options={"max_steps": 3})
        trainer.train()
        predictor = RegressionPredictor(trainer.model, tokenizer, GRID, method="pooled")
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        np.testing.assert_allclose(predictor.predict([row["prompt"] for row in rows]), expected, atol=1e-5)

    def test_it_is_saved_from_the_state_dict_that_is_given(self, tiny_llama, tokenizer, tmp_path, rows):
        """As where the model is in shards, and only the gathered state dict is whole."""
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, "pooled mean")
        gathered = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        whole = gathered["regression_head.weight"].clone()
        trainer.readout.head.weight.data = torch.empty(0)
        trainer._save(str(tmp_path / "saved"), gathered)
        assert torch.equal(load_file(tmp_path / "saved" / "regression_head.safetensors")["weight"], whole)

    def test_pushes_from_a_checkpoint_hold_everything(self, tiny_llama, tokenizer, tmp_path, rows, monkeypatch):
        from transformers import Trainer

        trainer = make(tiny_llama, tokenizer, tmp_path / "run", rows, "pooled mean")
        monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
        trainer.save_model(str(tmp_path / "checkpoint"))
        (tmp_path / "run").mkdir(exist_ok=True)
        trainer._push_from_checkpoint(str(tmp_path / "checkpoint"))
        assert (tmp_path / "run" / "regression_head.safetensors").is_file()
        assert (tmp_path / "run" / "raft_config.json").is_file()


class TestTargetsAsText:
    def test_a_target_longer_than_what_is_decoded(self, tiny_llama, sentencepiece, tmp_path, rows):
        with pytest.raises(ValueError, match=r"row 0: the target '1234567.65432' has 13 tokens, and 12 are decoded"):
            make(tiny_llama, sentencepiece, tmp_path, [{**rows[0], "label": 1234567.654321}], "ce")

    def test_a_target_that_begins_inside_the_prompt(self, smollm2, tmp_path, rows):
        with pytest.raises(ValueError, match=r"row 0: The target's text begins inside the prompt.*without a sign"):
            make(str(smollm2), None, tmp_path, [{**rows[0], "label": -1.0}], "ce")

    def test_a_collator_that_pads_on_the_right(self, tiny_llama, tokenizer, tmp_path, rows):
        dataset = Dataset.from_list(rows)
        expected = make(tiny_llama, tokenizer, tmp_path, rows, "ce").predict(dataset)
        collate = RegressionCollator(pad_token_id=1)

        def right(batch_rows):
            batch = collate(batch_rows)
            order = (1 - batch["attention_mask"]).argsort(dim=1, stable=True)
            return {
                **batch,
                "input_ids": batch["input_ids"].gather(1, order),
                "attention_mask": batch["attention_mask"].gather(1, order),
            }

        output = make(tiny_llama, tokenizer, tmp_path, rows, "ce", data_collator=right).predict(dataset)
        np.testing.assert_array_equal(output.predictions, expected.predictions)
        assert output.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)


def test_another_method_or_grid_keeps_the_saved_settings_that_it_takes(tiny_llama, tokenizer, tmp_path, rows):
    options = {"attention": "bidirectional", "renormalize": True, "separator": " = ", "max_length": 50}
    make(tiny_llama, tokenizer, tmp_path, rows, options=options).save_model()
    rail = RegressionPredictor.from_pretrained(tmp_path, method="rail")
    assert (rail.settings.attention, rail.settings.renormalize) == ("bidirectional", True)
    other = RegressionPredictor.from_pretrained(tmp_path, grid=[1, 2], attention="causal")
    assert (other.settings.attention, other.settings.renormalize) == ("causal", True)
    assert (other._encoder.separator, other._encoder.max_length, other.grid.values) == (" = ", 50, (1.0, 2.0))


def test_virtual_tokens_are_refused(tiny_llama, tokenizer, tmp_path, rows):
    with pytest.raises(ValueError, match=r"PROMPT_TUNING, whose virtual tokens stand before the padding.*Use LoRA"):
        make(tiny_llama, tokenizer, tmp_path, rows, peft_config=PromptTuningConfig(num_virtual_tokens=4))


def test_labels_beyond_the_grid_are_no_worry_of_a_head(tiny_llama, tokenizer, tmp_path, rows, caplog):
    far = [{**row, "label": 10 + row["label"]} for row in rows]
    for name, warned in (("pooled mean", False), ("ce", False), ("raft", True)):
        caplog.clear()
        make(tiny_llama, tokenizer, tmp_path, far, name)
        assert ("outside what this grid can express" in caplog.text) is warned, name


def test_rows_that_another_trainer_encoded_are_refused(tiny_llama, tokenizer, tmp_path, rows):
    encoded = make(tiny_llama, tokenizer, tmp_path, rows).train_dataset
    with pytest.raises(ValueError, match="was encoded by another trainer"):
        make(tiny_llama, tokenizer, tmp_path, encoded)
