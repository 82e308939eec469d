"""Rows of `chosen` and `rejected`: a pairwise loss on the expectations, alone and beside rows with labels."""

import math

import pytest
import torch
from datasets import Dataset
from support.training import GRID, lora, make
from torch.nn.functional import logsigmoid

from raft_peft import NumberGrid, RegressionAwareConfig, RegressionPredictor
from raft_peft.methods.preference_losses import resolve_preferences
from raft_peft.training.fault_tolerance.trainer import rows_of

TEMPLATE = "Question: {prompt} Answer: {completion} Score:"
PAIRS = [
    {"prompt": f"what is {n}?", "chosen": "a" * (n % 3 + 1), "rejected": f"not {n}", "margin": n / 4} for n in range(6)
]
LABELLED = [{"prompt": f"what is {n}?", "completion": f"it is {n}", "label": n / 2} for n in range(4)]
BETA = 1.5


def whole(rows):
    """The rows with the columns of all."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def expectation_by_hand(model, tokenizer, prompt):
    """The renormalized mean of the grid, from the logits of the whole sequence, for one prompt alone."""
    logits = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1].double()
    probabilities = logits[tokenizer.convert_tokens_to_ids([f"Ġ{y}" for y in GRID])].softmax(-1)
    return probabilities @ torch.tensor(GRID, dtype=torch.float64)


def written(row, completion):
    return TEMPLATE.format(prompt=row["prompt"], completion=completion)


def losses_by_hand(model, tokenizer, rows):
    losses = []
    for row in rows:
        if row.get("label") is not None:
            prediction = expectation_by_hand(model, tokenizer, written(row, row["completion"]))
            losses.append((prediction - row["label"]) ** 2)
            continue
        chosen, rejected = (
            expectation_by_hand(model, tokenizer, written(row, row[name])) for name in ("chosen", "rejected")
        )
        losses.append(-logsigmoid(BETA * (chosen - rejected - row["margin"])))
    return torch.stack(losses)


def gradients(model):
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


class StoppedError(Exception):
    pass


def gradients_of_step(model, tokenizer, tmp_path, rows, **options):
    """The gradients of the first optimizer step, before they are clipped."""
    model.zero_grad()
    trainer = make(
        model,
        tokenizer,
        tmp_path,
        whole(rows),
        options={
            "prompt_template": TEMPLATE,
            "preference_beta": BETA,
            "preference_weight": 1.0,
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "train_sampling_strategy": "sequential",
            **options,
        },
    )
    found = []

    def note(*_args, **_options):
        found.append(gradients(model).clone())
        raise StoppedError

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(note)
    with pytest.raises(StoppedError):
        trainer.train()
    return found[0]


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize(
    "rows",
    [PAIRS[:4], [LABELLED[0], PAIRS[1], LABELLED[2], PAIRS[3]]],
    ids=["preferences", "beside labels"],
)
def test_gradients_are_those_of_the_formula(tiny_llama, tokenizer, tmp_path, rows, padding_free):
    """Whether the step is one batch or one row a batch, the mean is over its rows."""
    found = [
        gradients_of_step(
            tiny_llama,
            tokenizer,
            tmp_path,
            rows,
            padding_free=padding_free,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
        )
        for size in (4, 1)
    ]
    tiny_llama.zero_grad()
    losses_by_hand(tiny_llama, tokenizer, rows).mean().backward()
    expected = gradients(tiny_llama)
    assert expected.abs().max() > 1e-3
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-5)


def metrics_by_hand(model, tokenizer):
    """Of the pairs: the share that is in order, the mean difference, and the mean loss."""
    with torch.no_grad():
        differences = [
            expectation_by_hand(model, tokenizer, written(row, row["chosen"]))
            - expectation_by_hand(model, tokenizer, written(row, row["rejected"]))
            for row in PAIRS
        ]
        losses = losses_by_hand(model, tokenizer, PAIRS)
    accuracy = sum((one > 0).item() for one in differences) / len(PAIRS)
    return accuracy, torch.stack(differences).mean().item(), losses.mean().item()


def test_a_run_orders_the_pairs_and_its_folder_predicts_numbers(tiny_llama, tokenizer, tmp_path):
    """Six pairs in batches of four, evaluated in batches of three, beside rows with labels."""
    tiny_llama.save_pretrained(tmp_path / "base")
    pairs = Dataset.from_list(PAIRS)
    trainer = make(
        str(tmp_path / "base"),
        tokenizer,
        tmp_path / "run",
        PAIRS,
        eval_dataset={"pairs": pairs, "mixed": Dataset.from_list(whole([*LABELLED, *PAIRS]))},
        peft_config=lora(),
        options={
            "prompt_template": TEMPLATE,
            "preference_beta": BETA,
            "per_device_train_batch_size": 4,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "metric_for_best_model": "eval_pairs_pair_accuracy",
        },
    )
    assert trainer.args.renormalize
    assert trainer.args.greater_is_better
    before = trainer.evaluate()
    accuracy, margin, loss = metrics_by_hand(trainer.model, tokenizer)
    for name in ("pairs", "mixed"):
        assert before[f"eval_{name}_pair_accuracy"] == pytest.approx(accuracy)
        assert before[f"eval_{name}_pair_margin"] == pytest.approx(margin, abs=1e-4)
        assert before[f"eval_{name}_pair_loss"] == pytest.approx(loss, rel=1e-4)
    assert before["eval_pairs_loss"] == before["eval_pairs_pair_loss"]
    assert "eval_pairs_rmse" not in before
    with torch.no_grad():
        of_labels = losses_by_hand(trainer.model, tokenizer, LABELLED)
    assert before["eval_mixed_rmse"] == pytest.approx(math.sqrt(of_labels.mean()), rel=1e-4)
    assert before["eval_mixed_loss"] == pytest.approx((of_labels.sum() + 6 * loss).item() / 10, rel=1e-4)

    assert trainer.evaluations["eval_mixed"].pairs == 6
    assert trainer.evaluations["eval_mixed"].labels.tolist() == [0, 0.5, 1, 1.5]

    trainer.train()
    after = trainer.evaluate(pairs)
    assert after["eval_pair_accuracy"] > accuracy
    assert after["eval_pair_loss"] < before["eval_pairs_pair_loss"]
    trainer.save_model()
    assert "| Preferences | by the loss of Bradley and Terry, beta = 1.5 |" in (tmp_path / "run/README.md").read_text()
    predictor = RegressionPredictor.from_pretrained(tmp_path / "run")
    chosen = predictor.predict([{**row, "completion": row["chosen"]} for row in PAIRS])
    rejected = predictor.as_reward()([row["prompt"] for row in PAIRS], [row["rejected"] for row in PAIRS])
    assert (chosen - rejected).mean() == pytest.approx(after["eval_pair_margin"], abs=1e-4)
    output = trainer.predict(pairs)
    assert output.predictions.tolist() == pytest.approx(chosen.tolist(), abs=1e-4)
    assert output.rejected.tolist() == pytest.approx(rejected, abs=1e-4)

    # Where memory is short, the prompts of a pair are read apart.
    trainer._reader._parts._most_tokens = 1
    assert trainer.evaluate(pairs)["eval_pair_loss"] == pytest.approx(after["eval_pair_loss"], rel=1e-4)


def test_what_cannot_be_trained_is_told(tiny_llama, tokenizer, tmp_path, rows, caplog):
    def trainer(**options):
        return make(tiny_llama, tokenizer, tmp_path, PAIRS, options={"prompt_template": TEMPLATE, **options})

    for options in ({"method": "ce"}, {"method": "zero_shot"}, {"method": "mbr", "num_samples": 4}):
        with pytest.raises(ValueError, match=r"train dataset has preferences.*no gradient.*Set `method` to raft"):
            trainer(**options)
    for name in ("preference_beta", "preference_weight"):
        with pytest.raises(ValueError, match=f"`{name}=0` is .* above 0"):
            trainer(**{name: 0})
    with pytest.raises(ValueError, match="`distribution_loss='crps'` is of labels, and the train dataset has none"):
        trainer(distribution_loss="crps")
    with pytest.raises(ValueError, match="`compute_metrics` gets one number"):
        make(tiny_llama, tokenizer, tmp_path, eval_dataset=Dataset.from_list(PAIRS), compute_metrics=dict)
    with pytest.raises(ValueError, match=r"`preference_beta=2` is for rows of `chosen` and `rejected`.*has none"):
        make(tiny_llama, tokenizer, tmp_path, rows, options={"preference_beta": 2})
    trainer(renormalize=False)
    assert "the loss of preferences falls where a rejected prompt is answered with no number" in caplog.text


def test_a_message_names_the_prompts_of_a_pair(tokenizer):
    """As where the loss of a step is not a number."""
    batch = {
        "input_ids": torch.tensor([tokenizer(text).input_ids for text in "abc"]),
        "attention_mask": torch.ones(3, 1, dtype=torch.long),
        "labels": torch.tensor([2.5, math.nan, math.nan]),
        "pair": torch.tensor([0, 1, -1]),
    }
    assert rows_of(batch, tokenizer) == ["label 2.5: 'a'", "chosen: 'b'", "rejected: 'c'"]


@pytest.mark.parametrize(
    ("grid", "method", "beta", "weight"),
    [
        ([1, 2, 5], "raft", 1, 1),
        ([0, 100], "raft", 0.04, 625),
        ([0, 100], "crps", 0.04, 25),
        ([0, 100], "soft_ce", 0.04, 1),
    ],
)
def test_the_defaults_are_the_same_on_any_scale(grid, method, beta, weight):
    args = RegressionAwareConfig("out", method=method)
    resolve_preferences(args, NumberGrid(grid))
    assert (args.preference_beta, args.preference_weight) == (beta, weight)
