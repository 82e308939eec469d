"""Answers to typed questions: those of the full logits, in any order, with each text computed once."""

import random

import numpy as np
import pytest
import torch
from conftest import make_tiny_llama
from support.questions import QUESTIONS, STATES
from transformers import AutoTokenizer

from raft_peft import RegressionPredictor
from raft_peft.data.questions.encoder import QuestionEncoder
from raft_peft.data.questions.row import QuestionRow


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    """A real one, since labels such as "yes" must be one token."""
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def predictor(tokenizer):
    return RegressionPredictor(make_tiny_llama(tokenizer), tokenizer)


def by_hand(predictor, state, questions):
    """The probability of each option over the whole vocabulary, from a prompt at a time."""
    row = QuestionRow.of({"state": state, "questions": questions})
    found = {}
    for asked in QuestionEncoder(predictor.tokenizer).encode([row])[0]:

        def following(ids, asked=asked):
            with torch.no_grad():
                logits = predictor.model(input_ids=torch.tensor([[*asked.input_ids, *ids]])).logits
            return logits[0, -1].float().softmax(-1)

        numbers = [ids for ways in asked.label_token_ids for ids in ways]
        probs = []
        for ways in asked.label_token_ids:
            total = 0.0
            for ids in ways:
                product = np.prod([float(following(ids[:end])[token]) for end, token in enumerate(ids)])
                goes_on = {other[len(ids)] for other in numbers if other[: len(ids)] == ids != other}
                total += product * (1 - sum(float(following(ids)[token]) for token in goes_on))
            probs.append(total)
        found[asked.question.id] = probs
    return found


def test_are_those_of_the_full_logits(predictor):
    answers = predictor.decide(STATES[2], QUESTIONS)
    for name, probs in by_hand(predictor, STATES[2], QUESTIONS).items():
        answer = answers[name]
        assert answer.label_mass == pytest.approx(sum(probs), rel=1e-3)
        np.testing.assert_allclose(list(answer.probabilities.values()), np.array(probs) / sum(probs), atol=1e-4)
    anger = list(answers["anger"].probabilities.values())
    assert answers["anger"].value == pytest.approx(anger[1] + 2 * anger[2])
    price = list(answers["price"].probabilities.values())
    assert answers["price"].value == pytest.approx(5 * price[1] + 10 * price[2] + 50 * price[3])
    kind = answers["kind"]
    assert kind.probabilities[kind.value] == max(kind.probabilities.values())


def test_a_text_is_computed_once_whatever_the_order(predictor):
    """Five questions for each of 12 long texts, one a row, in any order."""
    texts = [" ".join(random.Random(index).choices(["ab", "cd", "ef", "gh", "ij"], k=60)) for index in range(12)]
    asked = {
        f"q{index}": {"type": "score", "instructions": f"Is it {index}?", "criteria": ["no", "so", "yes"]}
        for index in range(5)
    }
    together = predictor.decide_rows([{"state": text} for text in texts], questions=asked)
    rows = [(text, name) for text in texts for name in asked]
    random.Random(0).shuffle(rows)
    tokens = []
    hook = predictor.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: tokens.append(inputs[0].numel())
    )
    apart = predictor.decide_rows(
        [{"state": text, "questions": {name: asked[name]}} for text, name in rows], batch_size=10
    )
    hook.remove()
    for (text, name), answer in zip(rows, apart, strict=True):
        assert answer[name].value == pytest.approx(together[texts.index(text)][name].value, abs=1e-5)
    encoded = QuestionEncoder(predictor.tokenizer).encode(
        [QuestionRow.of({"state": text, "questions": asked}) for text in texts]
    )
    prompts = [one.input_ids for row in encoded for one in row]
    distinct = len({tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)})
    # Rows of a batch are padded to the longest, and texts differ by a few tokens.
    assert distinct <= sum(tokens) < 1.25 * distinct < 0.5 * sum(map(len, prompts))


def test_mistakes(predictor):
    with pytest.raises(ValueError, match=r"Row 0 has no `questions`"):
        predictor.decide("a text")
    with pytest.raises(ValueError, match=r"question 'tone'"):
        predictor.decide("a text", {"tone": {"type": "score", "instructions": "?", "criteria": ["one"]}})
    with pytest.raises(ValueError, match="This predictor has no grid"):
        predictor.predict(["a text"])
    with pytest.raises(ValueError, match="`batch_size=0` must be 1 or more"):
        predictor.decide_rows([{"state": "a"}], 0, questions=QUESTIONS)
    assert predictor.decide_rows([]) == []
