"""Answers to typed questions: those of the full logits, in any order, with each text computed once."""

import random

import numpy as np
import pytest
import torch
from conftest import make_tiny_llama
from datasets import Dataset
from support.questions import QUESTIONS, STATES, question_rows
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


def test_intervals_after_calibration(predictor, tokenizer, tmp_path):
    rows = question_rows(10)
    with pytest.raises(ValueError, match=r"not calibrated\. .*`predictor\.calibrate_questions\(rows\)`"):
        predictor.decide("a text", QUESTIONS, interval=0.5)
    # Rows that ask nothing themselves, and a question that is left out.
    bare = [{"state": row["state"], "targets": row["targets"]} for row in rows]
    found = predictor.calibrate_questions(bare, questions=QUESTIONS)
    answers = predictor.decide_rows(rows, interval=0.5)
    assert predictor.decide_rows(rows)[0]["anger"].low is None
    errors = sorted(abs(one["anger"].value - [0, 1, 1.5][index % 3]) for index, one in enumerate(answers))
    # ceil(11 x 0.5) = 6
    low, high = max(answers[0]["anger"].value - errors[5], 0), min(answers[0]["anger"].value + errors[5], 2)
    assert (answers[0]["anger"].low, answers[0]["anger"].high) == (pytest.approx(low), pytest.approx(high))
    assert answers[0]["anger"].options is answers[0]["spam"].low is None
    right = sorted(one["spam"].probabilities["yes" if index % 3 == 1 else "no"] for index, one in enumerate(answers))
    for one in answers:
        probabilities = one["spam"].probabilities
        likeliest = max(probabilities, key=probabilities.get)
        # The fourth from below is the sixth from above. In another batch it is rounded otherwise.
        inside = {name for name, p in probabilities.items() if p > right[4] + 1e-5 or name == likeliest}
        ties = {name for name, p in probabilities.items() if abs(p - right[4]) <= 1e-5}
        assert inside <= set(one["spam"].options) <= inside | ties
    with pytest.raises(ValueError, match="5 held-out rows of the question 'price' cannot warrant"):
        predictor.decide("a text", QUESTIONS, interval=0.9)
    with pytest.raises(ValueError, match=r"'spam' was calibrated in other words.* 'Is it an advertisement\?'"):
        predictor.decide("a", {"spam": {"type": "noul", "instructions": "Is it an advertisement?"}}, interval=0.5)
    with pytest.raises(ValueError, match="`intervals='wide'` does not exist"):
        predictor.calibrate_questions(rows, intervals="wide")
    predictor.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found.save(tmp_path)
    loaded = RegressionPredictor.from_pretrained(tmp_path)
    assert loaded.decide(rows[0]["state"], QUESTIONS, interval=0.5)["spam"].options == answers[0]["spam"].options
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.add_(0.01)
    loaded.decide("a text", QUESTIONS)
    with pytest.raises(ValueError, match=r"made with another weights\. .*`predictor\.calibrate_questions\(rows\)`"):
        loaded.decide("a text", QUESTIONS, interval=0.5)
    with pytest.raises(ValueError, match="made with another question_template, max_length"):
        other = RegressionPredictor(predictor.model, tokenizer, max_length=99, question_template="sglang")
        other.question_calibration = found
        other.decide("a text", QUESTIONS, interval=0.5)


def test_rows_of_a_table_take_the_questions_of_the_call(predictor):
    """Whose options without a description are not those of other rows."""
    asked = {"kind": {**QUESTIONS["kind"], "criteria": {"letter": None, "bill": "to pay"}}}
    rows = Dataset.from_list([{"state": {"text": "fine", "from": None}}, {"state": {"text": None, "from": "me"}}])
    found = predictor.decide_rows(rows, questions=asked)
    expected = [predictor.decide(state, asked) for state in ({"text": "fine"}, {"from": "me"})]
    for one, other in zip(found, expected, strict=True):
        assert one["kind"].probabilities["bill"] == pytest.approx(other["kind"].probabilities["bill"], abs=1e-5)


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
