import json

import pytest

from raft_peft.data.questions.question import Question
from raft_peft.data.questions.template import QuestionTemplate

SCORE = Question.of("tone", {"type": "score", "instructions": "How polite?", "criteria": ["rude", "kind"]})
YES_NO = Question.of("spam", {"type": "noul", "instructions": "Is it spam?", "criteria": {"true": "an {ad}"}})
CHOICE = Question.of(
    "team", {"type": "choice", "instructions": "Who?", "criteria": {"billing": "payments", "it": None}}
)
NUMBER = Question.of("days", {"type": "number", "instructions": "How many days?", "criteria": "0..30"})


def test_the_words_of_sglang():
    """As render_question of SGLang 0.5.23 (srt/entrypoints/openai/serving_decisions.py) writes them."""
    sglang = QuestionTemplate.of("sglang")
    state = sglang.state_text({"a": [1, 2]})
    assert state == '{"a":[1,2]}'
    assert sglang.content(state, YES_NO) == (
        '{"a":[1,2]}\n\nIs the following true? Is it spam?\nyes: an {ad}\nAnswer with yes or no only.'
    )
    assert sglang.content("x", CHOICE) == (
        "x\n\nQuestion: Who?\nA: billing - payments\nB: it\nAnswer with the letter of one option only."
    )
    assert sglang.content("x", SCORE) == (
        "x\n\nQuestion: How polite?\n0: rude\n1: kind\nAnswer with the number of one level only."
    )


def test_a_number_says_its_ends():
    assert QuestionTemplate().content("x", NUMBER) == (
        "x\n\nQuestion: How many days?\nAnswer with a number from 0 to 30 only."
    )


def test_a_template_of_ones_own():
    own = QuestionTemplate.of(
        {
            "prompt": "Text: {state}\n{question}",
            "heading": "{instructions}",
            "option": "({label}) {option}",
            "replies": {"score": "Level:"},
            "aliases": {"0": ["zero"]},
            "system": "You judge.",
        }
    )
    assert own.content("x", SCORE) == "Text: x\nHow polite?\n(0) rude\n(1) kind\nLevel:"
    assert own.label_texts(SCORE) == (("0", "zero"), ("1",))
    # What is not said is as vLLM says it.
    assert own.content("x", CHOICE).endswith("(B) it\nAnswer with the letter of one option only.")
    text = json.dumps(own.as_setting())
    assert QuestionTemplate.of(json.loads(text)) == QuestionTemplate.of(text) == own
    assert [QuestionTemplate.of(name).as_setting() for name in (None, "vllm", "sglang")] == ["vllm", "vllm", "sglang"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("llama", "There is no question template 'llama'. Use one of vllm, sglang"),
        (3, "The question template is 3"),
        ('{"chat": no}', "begins like a JSON object, but is not one"),
        ({"head": "x"}, r"The question template has \['head'\]"),
        ({"prompt": "{state}"}, "`prompt` .* takes {state} and {question}, each once"),
        ({"prompt": "{question} {state}"}, "Put {state} before {question}"),
        ({"option": "{label"}, "`option` .* Write a text"),
        ({"heading": None}, "`heading` .* Write a text"),
        ({"replies": {"noul": "x"}}, r"`replies` .* the types \['noul'\]"),
        ({"replies": {"number": "From {least}:"}}, "The reply of the type 'number' is 'From {least}:'"),
        ({"aliases": {"yes": "Yes"}}, "Write lists of texts"),
        ({"aliases": {"yes": ["no"], "no": ["No"]}}, "stands there once"),
    ],
)
def test_what_is_no_template(template, message):
    with pytest.raises(ValueError, match=message):
        QuestionTemplate.of(template)
