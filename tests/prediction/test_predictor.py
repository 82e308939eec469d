import json
import logging

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from raft_peft import NumberGrid, RegressionPredictor

GRID = [0, 1, 2, 3, 4]


@pytest.fixture
def predictor(tiny_llama, tokenizer):
    return RegressionPredictor(tiny_llama, tokenizer, GRID)


def by_hand(model, tokenizer, prompt):
    with torch.no_grad():
        p = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1].softmax(-1)
    return sum(y * p[tokenizer.convert_tokens_to_ids(f"Ġ{y}")].item() for y in GRID)


def test_numbers_come_back_in_order(predictor, tiny_llama, tokenizer, rows):
    prompts = [row["prompt"] for row in rows] * 40  # several windows of sorted batches
    predictions = predictor.predict(prompts, batch_size=3, show_progress=False)
    assert predictions.shape == (320,)
    assert predictions.dtype == np.float32
    expected = [by_hand(tiny_llama, tokenizer, row["prompt"]) for row in rows] * 40
    np.testing.assert_allclose(predictions, expected, atol=1e-5)


def test_an_iterator_is_read_a_window_at_a_time(predictor):
    read = []

    def prompts():
        for number in range(9000):
            read.append(number)
            yield f"item {number} is"

    encode, most = predictor._encoder.encode, []
    predictor._encoder.encode = lambda rows, **more: most.append((len(rows), len(read))) or encode(rows, **more)
    assert predictor.predict(prompts()).shape == (9000,)
    assert most == [(8192, 8192), (808, 9000)]


def test_the_distribution(predictor, rows):
    distribution = predictor.predict_distribution([row["prompt"] for row in rows])
    assert distribution.log_probs.shape == (8, 5)
    torch.testing.assert_close(distribution.mass + distribution.mass_off_grid, torch.ones(8))
    assert ((distribution.entropy >= 0) & (distribution.entropy <= np.log(5) + 1e-6)).all()


def test_predictions_and_distribution_of_one_pass(predictor, rows, monkeypatch):
    prompts = [row["prompt"] for row in rows]
    expected, distribution = predictor.predict(prompts), predictor.predict_distribution(prompts)
    passes, forward = [], predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", lambda **batch: passes.append(1) or forward(**batch))
    predictor.predict(prompts, batch_size=4)
    alone = len(passes)
    found = predictor.predict(prompts, batch_size=4, return_distribution=True)
    assert len(passes) == 2 * alone
    np.testing.assert_allclose(found.predictions, expected, atol=1e-6)
    torch.testing.assert_close(found.distribution.log_probs, distribution.log_probs)
    assert torch.allclose(found.distribution.probs @ found.distribution.values, torch.tensor(found.predictions))
    (one,), of_one = predictor.predict(prompts[:1], return_distribution=True)
    assert one == pytest.approx(expected[0], abs=1e-6)
    assert of_one.log_probs.shape == (1, 5)
    none, of_none = predictor.predict([], return_distribution=True)
    assert (none.shape, of_none.log_probs.shape) == ((0,), (0, 5))
    predictor.calibrate(prompts, range(8))
    numbers, low, high, of_all = predictor.predict(prompts, interval=0.5, return_distribution=True)
    assert (low <= numbers).all()
    assert (numbers <= high).all()
    torch.testing.assert_close(of_all.log_probs, distribution.log_probs)


def test_renormalised(tiny_llama, tokenizer):
    predictor = RegressionPredictor(tiny_llama, tokenizer, GRID, renormalize=True)
    distribution = predictor.predict_distribution(["the score is"])
    expected = (distribution.probs * distribution.values).sum() / distribution.mass.sum()
    assert predictor.predict(["the score is"]) == pytest.approx(expected.item())


def test_chats_rows_and_prompts_that_end_differently(predictor):
    chat = [{"role": "user", "content": "Rate it"}]
    text = "user: Rate it\nassistant:\n"
    predictions = predictor.predict([chat, text, {"prompt": chat}, {"prompt": text}, "the score is", "the score is "])
    np.testing.assert_allclose(predictions[:4], predictions[0], atol=1e-6)
    assert predictions.shape == (6,)


def test_no_prompts(predictor):
    assert predictor.predict([]).shape == (0,)


@pytest.mark.parametrize("prompts", ["one prompt", {"prompt": "x"}, [{"role": "user", "content": "x"}]])
def test_one_prompt_that_is_not_in_a_list(predictor, prompts):
    with pytest.raises(ValueError, match=r"must be a list of .* pass a list of one"):
        predictor.predict(prompts)


def test_a_wrong_prompt_is_named_by_its_number(predictor):
    with pytest.raises(ValueError, match="row 130: The prompt is empty"):
        predictor.predict(["fine"] * 130 + [""], batch_size=2)
    with pytest.raises(ValueError, match="batch_size=0"):
        predictor.predict(["fine"], batch_size=0)


class TestFromPretrained:
    @pytest.fixture
    def folder(self, tiny_llama, tokenizer, tmp_path):
        tiny_llama.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    def test_zero_shot_from_a_base_model_and_a_grid(self, folder, tiny_llama, tokenizer):
        predictor = RegressionPredictor.from_pretrained(folder, grid={y: str(y) for y in GRID}, dtype="float32")
        expected = by_hand(tiny_llama, tokenizer, "the score is")
        np.testing.assert_allclose(predictor.predict(["the score is"]), [expected], atol=1e-5)

    @pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "runs/stars/final"])
    def test_a_folder_that_is_missing(self, name):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            RegressionPredictor.from_pretrained(name, grid=GRID)

    def test_a_grid_is_needed_to_predict(self, folder):
        predictor = RegressionPredictor.from_pretrained(folder)
        with pytest.raises(ValueError, match=r"This predictor has no grid.*such as `grid="):
            predictor.predict(["the score is"])

    def test_an_adapter_for_another_task(self, tiny_llama, tokenizer, tmp_path):
        get_peft_model(tiny_llama, LoraConfig()).save_pretrained(tmp_path / "adapter")
        tokenizer.save_pretrained(tmp_path / "adapter")
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": "SEQ_CLS"}))
        with pytest.raises(ValueError, match="is for the task SEQ_CLS"):
            RegressionPredictor.from_pretrained(tmp_path / "adapter", GRID)

    def test_model_options_are_passed_on(self, folder):
        predictor = RegressionPredictor.from_pretrained(
            str(folder), GRID, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu"
        )
        assert predictor.model.dtype == torch.bfloat16
        assert predictor.model.config._attn_implementation == "eager"

    def test_saved_settings_and_their_replacement(self, folder):
        config = {"values": [1, 2], "texts": ["1", "2"], "renormalize": True, "max_length": 9, "separator": " "}
        (folder / "raft_config.json").write_text(json.dumps(config))
        predictor = RegressionPredictor.from_pretrained(folder)
        assert predictor.settings.renormalize
        assert predictor.grid == NumberGrid([1, 2])
        assert predictor._encoder.max_length == 9
        assert not RegressionPredictor.from_pretrained(folder, renormalize=False).settings.renormalize
        assert RegressionPredictor.from_pretrained(folder, grid=GRID).grid == NumberGrid(GRID)

    def test_another_tokenizer_in_the_folder_is_noticed(self, folder, smollm2_tokenizer, tokenizer):
        ids = [[tokenizer.convert_tokens_to_ids(token)] for token in ("Ġ1", "Ġ2")]
        config = {"values": [1, 2], "texts": ["1", "2"], "token_ids": ids, "token_texts": [" 1", " 2"]}
        (folder / "raft_config.json").write_text(json.dumps(config))
        RegressionPredictor.from_pretrained(folder)
        smollm2_tokenizer.save_pretrained(folder)
        with pytest.raises(ValueError, match="Load the tokenizer that was saved with the adapter"):
            RegressionPredictor.from_pretrained(folder)


def test_left_and_right_padding_tokenizers_agree(tiny_llama, tokenizer, rows):
    prompts = [row["prompt"] for row in rows]
    results = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        results.append(RegressionPredictor(tiny_llama, tokenizer, GRID).predict(prompts))
    np.testing.assert_array_equal(*results)


def test_a_real_model_by_hand(smollm2):
    """SmolLM2, zero-shot: the probabilities of the whole vocabulary at the last token of each prompt alone."""
    predictor = RegressionPredictor.from_pretrained(smollm2, grid=range(6), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "How many legs has an insect, halved? Answer with a digit."}]
    prompts = ["The number of legs of a dog is", "Stars:", "From 0 to 5, how good is this soup? I say\n"]
    texts = [
        prompts[0] + " ",
        prompts[1] + " ",
        prompts[2],
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
    ]
    expected = []
    for text in texts:
        with torch.no_grad():
            p = predictor.model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1].double().softmax(-1)
        expected.append(sum(y * p[tokenizer.convert_tokens_to_ids(str(y))].item() for y in range(6)))
    np.testing.assert_allclose(predictor.predict([*prompts, chat], batch_size=4), expected, atol=1e-5)


def test_the_rows_of_whatever_holds_them(predictor, rows):
    prompts = [row["prompt"] for row in rows]
    expected = predictor.predict(prompts)
    dataset = Dataset.from_list(rows)
    for holder in (
        pandas.DataFrame(rows),
        dataset,
        dataset.with_format("torch"),
        dataset["prompt"],
        np.array(prompts),
    ):
        np.testing.assert_allclose(predictor.predict(holder), expected, atol=1e-6)
    with pytest.raises(ValueError, match="a set, which has no order"):
        predictor.predict(set(prompts))


class TestRemarks:
    long = "It is very, very long. " * 4 + "The score is"

    @pytest.fixture
    def predictor(self, tiny_llama, tokenizer):
        return RegressionPredictor(tiny_llama, tokenizer, GRID, max_length=12)

    def test_cut_prompts_are_said_once_a_call(self, predictor, caplog):
        said = "2 of the 3 prompts are longer than `max_length=12` and lost their beginning"
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="raft_peft.data"):
                predictor.predict([self.long, "It is", self.long])
            assert caplog.text.count("lost their beginning") == 1
            assert said in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="raft_peft.data"):
            list(predictor.read([self.long] * 6, chunk_size=2))
            predictor.calibrate([self.long] * 6, [1.0] * 6)
        assert caplog.text.count("lost their beginning") == 2

    def test_padding_and_open_thoughts(self, predictor, caplog):
        ids = predictor.tokenizer("It is").input_ids
        with caplog.at_level(logging.WARNING, logger="raft_peft.data"):
            padded, plain = predictor.predict([{"input_ids": [*ids, predictor.tokenizer.eos_token_id]}, "It is"])
            predictor.predict(["It is <think>"])
        assert padded == pytest.approx(plain, abs=1e-6)
        assert "1 of the 2 prompts are input_ids with padding" in caplog.text
        assert "1 of the 1 prompts end inside an open thought" in caplog.text


def test_prompts_that_the_model_cannot_take(predictor):
    tokenizer = predictor.tokenizer
    tokenizer.add_tokens(["<score>"])
    with pytest.raises(ValueError, match=r"row 1: the token id \d+ is beyond the model's \d+ embeddings"):
        predictor.predict(["It is", "It is <score>"])
    predictor.model.config.max_position_embeddings = 20
    with pytest.raises(ValueError, match=r"row 1: the prompt with its number has .* and the model has 20 positions"):
        predictor.predict(["It is", "It is very, very long. " * 9])
