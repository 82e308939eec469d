"""Grids whose numbers are several tokens, from the trainer to the saved folder and back."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.training import config, lora, make
from transformers import BloomConfig, BloomForCausalLM

from raft_peft import NumberGrid, RegressionAwareTrainer, RegressionPredictor
from raft_peft.forward import memory as trie_memory

GRID = NumberGrid([0, 1, 1.5, 2, 10, 12.5])  # " 1" begins " 1.5"
PREFIX_FREE = NumberGrid.spaced(0, 2, 0.5)


def by_hand(model, tokenizer, prompt, grid=GRID, end=None):
    """p(str(y) | x) of each number in float64, from the plain forward on the written-out sentence."""
    start = len(tokenizer(prompt).input_ids)
    numbers = [tuple(tokenizer(f"{prompt} {text}").input_ids[start:]) for text in grid.texts]

    def following(beginning):
        with torch.no_grad():
            ids = torch.tensor([[*tokenizer(prompt).input_ids, *beginning]])
            return model(ids).logits[0, -1].double().softmax(-1)

    result = []
    for number in numbers:
        p = math.prod(following(number[:index])[token].item() for index, token in enumerate(number))
        goes_on = {other[len(number)] for other in numbers if other[: len(number)] == number != other}
        if goes_on:
            after = following(number)
            p *= (1 - sum(after[token].item() for token in goes_on)) if end is None else after[end].item()
        result.append(p)
    return np.array(result)


@pytest.fixture
def short_rows(rows):
    return [{**row, "label": row["label"] / 2} for row in rows]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_predictions_equal_the_written_out_sentences(tiny_llama, tokenizer, tmp_path, rows, padding_side):
    tokenizer.padding_side = padding_side
    expected = np.stack([by_hand(tiny_llama, tokenizer, row["prompt"]) for row in rows])
    trainer = make(tiny_llama, tokenizer, tmp_path, grid=GRID)
    output = trainer.predict(Dataset.from_list(rows))
    np.testing.assert_allclose(output.distribution.probs, expected, atol=1e-6)
    np.testing.assert_allclose(output.predictions, expected @ GRID.values, rtol=1e-4)


def test_an_end_token_must_follow_where_it_is_asked_for(tiny_llama, tokenizer, tmp_path, rows):
    prompts = [row["prompt"] for row in rows]
    expected = np.stack([by_hand(tiny_llama, tokenizer, prompt, end=tokenizer.eos_token_id) for prompt in prompts])
    predictor = RegressionPredictor(tiny_llama, tokenizer, GRID, number_end="eos")
    np.testing.assert_allclose(predictor.predict_distribution(prompts).probs, expected, rtol=1e-4, atol=1e-9)

    every = RegressionPredictor(tiny_llama, tokenizer, range(5), number_end="eos", end_every_number=True)
    plain = RegressionPredictor(tiny_llama, tokenizer, range(5))
    ratio = every.predict_distribution(prompts[:1]).probs[0] / plain.predict_distribution(prompts[:1]).probs[0]
    for index in range(5):
        with torch.no_grad():
            logits = tiny_llama(torch.tensor([tokenizer(f"{prompts[0]} {index}").input_ids])).logits[0, -1]
        assert ratio[index].item() == pytest.approx(logits.softmax(-1)[tokenizer.eos_token_id].item(), rel=1e-4)


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (GRID, {"method": "raft"}),
        (GRID, {"method": "raft", "number_end": "eos"}),
        (GRID, {"method": "learnable_raft"}),
        (PREFIX_FREE, {"method": "raft", "renormalize": True}),
        (PREFIX_FREE, {"method": "mbr", "renormalize": True}),
    ],
    ids=["raft", "raft eos", "learnable_raft", "raft renormalised", "mbr renormalised"],
)
def test_learns_and_comes_back_exactly(grid, options, tiny_llama, tokenizer, tmp_path, rows):
    torch.nn.init.normal_(tiny_llama.lm_head.weight, std=0.02)
    targets = [0, 1.5, 1, 2, 1, 0.5, 0, 2]
    rows = [{**row, "label": float(target)} for row, target in zip(rows, targets, strict=True)]
    trainer = make(
        tiny_llama,
        tokenizer,
        tmp_path,
        rows,
        grid=grid,
        options={**options, "num_train_epochs": 150, "learning_rate": 1e-2},
    )
    trainer.train()
    output = trainer.predict(Dataset.from_list(rows))
    assert output.metrics["test_rmse"] < 0.15
    trainer.save_model()
    saved = json.loads((tmp_path / "raft_config.json").read_text())
    assert saved["number_end"] == options.get("number_end", "grid")
    assert max(map(len, saved["token_ids"])) > 1
    predictor = RegressionPredictor.from_pretrained(tmp_path)
    np.testing.assert_allclose(predictor.predict([row["prompt"] for row in rows]), output.predictions, atol=1e-6)


def test_lora_on_several_tokens_comes_back_exactly(tiny_llama, tokenizer, tmp_path, short_rows):
    folder = tmp_path / "base"
    tiny_llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trainer = RegressionAwareTrainer(
        str(folder),
        config(tmp_path / "adapter", max_steps=3, gradient_checkpointing=True),
        grid=PREFIX_FREE,
        train_dataset=Dataset.from_list(short_rows),
        peft_config=lora(),
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved
    assert all("lora_" in name for name in moved)
    trainer.save_model()
    predictions = trainer.predict(Dataset.from_list(short_rows)).predictions
    again = RegressionPredictor.from_pretrained(tmp_path / "adapter").predict([row["prompt"] for row in short_rows])
    np.testing.assert_allclose(again, predictions, atol=1e-6)


def test_one_batch_or_many_give_the_same_gradient(tiny_llama, tokenizer, tmp_path, short_rows):
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = type(tiny_llama)(tiny_llama.config)
        model.load_state_dict(tiny_llama.state_dict())
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 2}
        trainer = make(model, tokenizer, tmp_path, short_rows, grid=PREFIX_FREE, options=options)
        trainer.train()
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_log_loss_of_two_numbers_of_several_tokens(tiny_llama, tokenizer, tmp_path, rows):
    rows = [{**row, "label": 12.0 * (index % 2)} for index, row in enumerate(rows)]
    grid = NumberGrid([0.5, 12.5])
    rows = [{**row, "label": row["label"] + 0.5} for row in rows]
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, grid=grid, options={"method": "log_loss", "max_steps": 2})
    upper = np.array([by_hand(tiny_llama, tokenizer, row["prompt"], grid)[1] for row in rows])
    output = trainer.predict(Dataset.from_list(rows))
    np.testing.assert_allclose(output.predictions, 0.5 + 12 * upper, rtol=1e-4)
    t = np.arange(8) % 2
    expected = np.mean(-t * np.log(upper) - (1 - t) * np.log1p(-upper))
    assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(trainer.train().training_loss)


def test_cross_entropy_reports_the_whole_grid_in_evaluation(tiny_llama, tokenizer, tmp_path, short_rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, short_rows, grid=GRID, options={"method": "ce", "max_steps": 1})
    trainer.train()
    output = trainer.predict(Dataset.from_list(short_rows))
    expected = np.stack([by_hand(tiny_llama, tokenizer, row["prompt"]) for row in short_rows])
    np.testing.assert_allclose(output.distribution.probs, expected, atol=1e-6)
    assert {"test_rail_rmse", "test_parsed", "test_grid_mass"} <= set(output.metrics)


class TestDecodingWithinTheGrid:
    def test_greedy_equals_constrained_generation(self, tiny_llama, tokenizer, rows):
        """Against transformers' own generation, with everything but the grid ruled out."""
        prompts = [f"{row['prompt']} {index}, or" for index, row in enumerate(rows)]
        predictor = RegressionPredictor(tiny_llama, tokenizer, PREFIX_FREE, method="zero_shot", constrained=True)
        expected = []
        for prompt in prompts:
            ids = tokenizer(prompt).input_ids
            start = len(ids)
            numbers = {tuple(tokenizer(f"{prompt} {text}").input_ids[start:]): value for value, text in PREFIX_FREE}

            def allowed(_batch, sentence, start=start, numbers=numbers):
                done = tuple(sentence.tolist()[start:])
                return [number[len(done)] for number in numbers if number[: len(done)] == done != number] or [2]

            generated = tiny_llama.generate(
                torch.tensor([ids]), max_new_tokens=8, do_sample=False, prefix_allowed_tokens_fn=allowed
            )[0].tolist()[start:]
            expected.append(numbers[tuple(generated[: generated.index(2)])])
        np.testing.assert_allclose(predictor.predict(prompts), expected)
        assert len(set(expected)) > 1

    def test_samples_have_the_mean_of_their_distribution(self, tiny_llama, tokenizer, rows):
        prompts = [row["prompt"] for row in rows]
        sampled = RegressionPredictor(tiny_llama, tokenizer, GRID, method="rail", num_samples=20_000, constrained=True)
        torch.manual_seed(0)
        means = sampled.predict(prompts)
        with torch.no_grad():
            exact = sampled.readout.read_head(tiny_llama, batch_of(sampled, prompts))
        p = exact.constrained_log_probs.exp()
        np.testing.assert_allclose(means, p @ torch.tensor(GRID.values), atol=0.15)

    def test_single_tokens_too(self, tiny_llama, tokenizer, rows):
        prompts = [row["prompt"] for row in rows]
        greedy = RegressionPredictor(tiny_llama, tokenizer, range(5), method="zero_shot", constrained=True)
        mode = RegressionPredictor(tiny_llama, tokenizer, range(5), decision="mode")
        np.testing.assert_array_equal(greedy.predict(prompts), mode.predict(prompts))

    def test_the_trainer_parses_every_row(self, tiny_llama, tokenizer, tmp_path, short_rows):
        options = {"method": "ce", "constrained": True}
        trainer = make(tiny_llama, tokenizer, tmp_path, short_rows, grid=GRID, options=options)
        output = trainer.predict(Dataset.from_list(short_rows))
        assert output.metrics["test_parsed"] == 1
        assert set(output.predictions.tolist()) <= set(GRID.values)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"constrained": True}, "decodes no text"),
            ({"method": "rail", "constrained": True}, "Set `num_samples`"),
            ({"end_every_number": True}, "needs an end that can follow"),
            ({"number_end": ""}, "is empty"),
            ({"method": "pooled", "number_end": "eos"}, "reads no number's tokens"),
        ],
    )
    def test_settings_that_do_not_go_together(self, options, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **options)


def batch_of(predictor, prompts):
    encoded = predictor._encoder.encode([{"prompt": prompt} for prompt in prompts])
    return predictor._collator([{"input_ids": one.input_ids, "grid_token_ids": one.grid_token_ids} for one in encoded])


class TestLargeGrids:
    GRID = range(300)

    def test_prediction_goes_on_in_parts(self, tiny_llama, tokenizer, rows, monkeypatch):
        prompts = [row["prompt"] for row in rows]
        predictor = RegressionPredictor(tiny_llama, tokenizer, self.GRID)
        whole = predictor.predict_distribution(prompts, batch_size=8).log_probs
        passes = []
        tiny_llama.register_forward_hook(lambda *_: passes.append(1))
        monkeypatch.setattr(trie_memory, "_AT_ONCE", 8 * len(tokenizer) * 4 * 3 * 5)  # five nodes
        parts = predictor.predict_distribution(prompts, batch_size=8).log_probs
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
        nodes = 1 + batch_of(predictor, prompts)["trie_node_ids"].shape[1]
        assert len(passes) == math.ceil(nodes / 5) > 1

    def test_training_refuses_with_the_estimate(self, tiny_llama, tokenizer, tmp_path, rows, monkeypatch):
        monkeypatch.setattr(trie_memory, "free_memory", lambda device: 1 << 10)
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, grid=self.GRID, options={"max_steps": 1})
        with pytest.raises(ValueError, match=r"needs about .* GiB .* 0\.0 GiB are free: its 300 numbers begin in"):
            trainer.train()


class TestSaidOnce:
    @pytest.mark.parametrize(
        ("renormalize", "reason"), [(None, "Set `renormalize=True`"), (True, "read from this alone")]
    )
    def test_a_small_mass(self, renormalize, reason, tiny_llama, tokenizer, tmp_path, rows, caplog):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, grid=GRID, options={"renormalize": renormalize})
        with caplog.at_level(logging.WARNING, logger="raft_peft"):
            for _ in range(2):
                trainer.predict(Dataset.from_list(rows))
        said = [record.message for record in caplog.records if "with a probability of" in record.message]
        assert len(said) == 1
        assert reason in said[0]

    def test_not_where_it_does_not_matter(self, tiny_llama, tokenizer, tmp_path, rows, caplog):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, grid=GRID, options={"method": "zero_shot"})
        with caplog.at_level(logging.WARNING, logger="raft_peft"):
            trainer.predict(Dataset.from_list(rows))
        assert not any("with a probability of" in record.message for record in caplog.records)

    def test_a_slower_way(self, tokenizer, rows, caplog):
        torch.manual_seed(0)
        bloom = BloomForCausalLM(
            BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4)
        ).eval()
        prompts = [row["prompt"] for row in rows]
        predictor = RegressionPredictor(bloom, tokenizer, GRID)
        with caplog.at_level(logging.WARNING, logger="raft_peft"):
            found = predictor.predict_distribution(prompts, batch_size=3).probs
        said = [record.message for record in caplog.records if "rows for each prompt instead of one" in record.message]
        assert len(said) == 1
        assert "attn_implementation='sdpa'" in said[0]
        expected = np.stack([by_hand(bloom, tokenizer, prompt) for prompt in prompts])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bidirectional_prompts(tiny_llama, tokenizer, rows):
    prompts = [row["prompt"] for row in rows]
    several = RegressionPredictor(tiny_llama, tokenizer, [0, 1, 2.5], attention="bidirectional")
    single = RegressionPredictor(tiny_llama, tokenizer, [0, 1], attention="bidirectional")
    np.testing.assert_allclose(
        several.predict_distribution(prompts).probs[:, :2], single.predict_distribution(prompts).probs, atol=1e-6
    )


def test_weights_of_the_vocabulary_need_single_tokens(tiny_llama, tokenizer, tmp_path, rows):
    with pytest.raises(ValueError, match=r"read the next token alone.*add_number_tokens"):
        options = {"method": "learnable_raft", "weights": "vocabulary"}
        make(tiny_llama, tokenizer, tmp_path, rows, grid=GRID, options=options)


def test_heads_that_read_no_grid_do_not_pay_for_it(tiny_llama, tokenizer, tmp_path, rows):
    shapes = []
    tiny_llama.lm_head.register_forward_hook(lambda _module, _inputs, logits: shapes.append(logits.shape[1]))
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, grid=GRID, options={"method": "special_token"})
    trainer.predict(Dataset.from_list(rows))
    assert set(shapes) == {1}
