"""Predictions behind reasonings: given ones, and those that the model writes."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_llama
from support.reasonings import SCORE_PREFIX, reasoned_rows
from support.training import GRID

from raft_peft import RegressionPredictor


@pytest.fixture
def predictor(tokenizer):
    model = make_tiny_llama(tokenizer).eval()
    return RegressionPredictor(model, tokenizer, GRID, score_prefix=SCORE_PREFIX)


def of_text(predictor, text):
    """The distribution over the grid behind a text, from full logits."""
    ids = predictor.tokenizer(text + " 0")["input_ids"][:-1]
    numbers = [predictor.tokenizer(f"{text} {number}")["input_ids"][-1] for number in GRID]
    with torch.no_grad():
        return predictor.model(input_ids=torch.tensor([ids])).logits[0, -1].float().softmax(-1)[numbers]


def test_given_reasonings(predictor, caplog):
    rows = reasoned_rows()
    expected = []
    for row in rows:
        behind = [f" {one}\n[RESULT]" for one in row["reasoning"] or []] or ["\n[RESULT]"]
        probs = [of_text(predictor, row["prompt"] + one) for one in behind]
        expected.append(torch.stack(probs).mean(0))
    distribution = predictor.predict_distribution(rows)
    torch.testing.assert_close(distribution.probs, torch.stack(expected), atol=1e-6, rtol=1e-4)
    means = torch.stack(expected) @ torch.tensor(GRID, dtype=torch.float32)
    np.testing.assert_allclose(predictor.predict(rows), means, atol=1e-5)
    assert "there are no reasonings" not in caplog.text
    reasoned = predictor.predict_with_reasons(rows, 0)
    np.testing.assert_allclose(reasoned.predictions, means, atol=1e-5)
    assert [len(one) for one in reasoned.numbers] == [2, 1, 1, 3, 1, 1, 1, 2]
    predictor.predict(["Rate tea:"])
    assert "Set `num_reasonings`, such as 5" in caplog.text
    assert reasoned.reasonings[3] == ["It", "It is fine", "It is fine as it is"] and reasoned.reasonings[2] == []


def test_written_reasonings(predictor):
    prompts = [row["prompt"] for row in reasoned_rows()]
    torch.manual_seed(0)
    reasoned = predictor.predict_with_reasons(prompts, 3, max_reasoning_tokens=6)
    assert all(len(one) == 3 for one in reasoned.reasonings)
    for place, prompt in enumerate(prompts):
        for text, number in zip(reasoned.reasonings[place], reasoned.numbers[place], strict=True):
            probs = of_text(predictor, f"{prompt} {text}\n[RESULT]" if text else f"{prompt}\n[RESULT]")
            assert number == pytest.approx((probs * torch.tensor(GRID)).sum().item(), abs=1e-5)
    np.testing.assert_allclose(reasoned.predictions, [one.mean() for one in reasoned.numbers], atol=1e-5)
    torch.manual_seed(0)
    again = predictor.predict(prompts, num_reasonings=3, max_reasoning_tokens=6)
    np.testing.assert_allclose(again, reasoned.predictions, atol=1e-5)


def test_the_prompt_is_computed_once_for_all_of_its_reasonings(predictor, monkeypatch):
    seen = []
    forward = predictor.model.model.forward

    def counting(*args, **kwargs):
        seen.append(kwargs["input_ids"].numel() if kwargs.get("input_ids") is not None else 0)
        return forward(*args, **kwargs)

    monkeypatch.setattr(predictor.model.model, "forward", counting)
    prompt = "Rate the long and winding item 27, and say why:"
    predictor.writer(4, max_reasoning_tokens=3).write([{"prompt": prompt}])
    length = len(predictor.tokenizer(prompt)["input_ids"])
    assert seen[0] == length - 1 and seen[1:] == [4] * len(seen[1:])


def test_the_most_likely_reasoning_is_that_of_greedy_decoding(predictor):
    prompt = "Rate tea, and say why:"
    (written,) = predictor.writer(1, temperature=0.0, max_reasoning_tokens=5).write([{"prompt": prompt}])
    ids = predictor.tokenizer(prompt)["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            ids = [*ids, int(predictor.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    expected = predictor.tokenizer.decode(ids[-5:], skip_special_tokens=True)
    assert written[0].text == expected and not written[0].ended


def test_one_reasoning_where_one_is_read(predictor):
    """As a server reads prompts, each of which gets a number."""
    row = {"prompt": "Rate tea:", "reasoning": "It is hot."}
    one, listed, none = predictor.encode([row, {**row, "reasoning": ["It is hot."]}, {**row, "reasoning": None}])
    assert one == listed
    text = predictor.tokenizer.decode(one.input_ids)
    assert text.startswith("Rate tea: It is hot.\n[RESULT]") and one.reasoning_tokens > none.reasoning_tokens == 0
    with pytest.raises(ValueError, match=r"row 0: The row has 2 reasonings, .* Make a row of each"):
        predictor.encode([{**row, "reasoning": ["a", "b"]}])
    with pytest.raises(ValueError, match=r"row 0: The reasoning is 3\. It must be a text"):
        predictor.encode([{**row, "reasoning": 3}])


def test_a_reasoning_in_the_prompt_is_read_once(predictor, tokenizer):
    template = "Rate tea. {reasoning} The score is"
    plain = RegressionPredictor(predictor.model, tokenizer, GRID, prompt_template=template)
    written = plain.predict(["Rate tea. It is hot. The score is"])
    np.testing.assert_allclose(plain.predict([{"reasoning": "It is hot."}]), written, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_reasonings": -1}, "num_reasonings=-1"),
        ({"seed": 0}, "Set `num_reasonings`, or leave them out"),
        ({"num_reasonings": 2, "temperature": 0.0}, "are the same"),
        ({"num_reasonings": 1, "temperature": float("nan")}, "temperature=nan"),
        ({"num_reasonings": 1, "max_reasoning_tokens": 0}, "max_reasoning_tokens=0"),
        ({"num_reasonings": 1, "max_reasoning_tokens": 2040}, r"row 0: the prompt has \d+ tokens, .* 2048 positions"),
    ],
)
def test_what_cannot_be_written(predictor, options, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(["Rate tea, and say why:"], **options)


def test_words_by_which_no_reasoning_ends(predictor, tokenizer):
    for prefix in (" ", ""):
        with pytest.raises(ValueError, match="has no words"):
            RegressionPredictor(predictor.model, tokenizer, GRID, score_prefix=prefix)
    plain = RegressionPredictor(predictor.model, tokenizer, GRID)
    with pytest.raises(ValueError, match="Pass `score_prefix`"):
        plain.predict(["Rate tea:"], num_reasonings=1)


def test_a_seed_gives_the_same_reasonings_and_leaves_others_random_numbers_alone(predictor):
    prompts = ["Rate tea:", "Rate soup, and say why:"]
    state = torch.get_rng_state()
    once, again, other = (
        predictor.predict_with_reasons(prompts, 2, max_reasoning_tokens=4, seed=seed).reasonings for seed in (1, 1, 2)
    )
    assert once == again != other
    assert torch.equal(torch.get_rng_state(), state)
