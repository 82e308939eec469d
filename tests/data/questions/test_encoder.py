import copy
import itertools
import pickle

import pytest

from raft_peft.data.questions.encoder import QuestionEncoder
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.ratings import Ratings

QUESTIONS = {
    "tone": {"type": "score", "instructions": "How polite?", "criteria": ["rude", "plain", "kind"]},
    "spam": {"type": "noul", "instructions": "Is it spam?"},
    "days": {"type": "number", "instructions": "How many days?", "criteria": [1, 2, 10]},
}
WORDS = " ".join(f"word{n}" for n in range(100))


def row(state="Rate the item", targets=None, questions=QUESTIONS):
    return QuestionRow.of({"state": state, "questions": questions, "targets": targets})


def encode(tokenizer, one, *, require_targets=False, **options):
    return QuestionEncoder(tokenizer, **options).encode([one], require_targets=require_targets)[0]


def test_labels_of_several_tokens_and_aliases(smollm2_tokenizer):
    encoded = encode(smollm2_tokenizer, row(), template={"aliases": {"yes": ["Yes"], "no": ["No"]}})
    score, spam, days = (
        [smollm2_tokenizer.convert_ids_to_tokens(ids) for o in q.label_token_ids for ids in o] for q in encoded
    )
    assert score == [["0"], ["1"], ["2"]]
    assert spam == [["yes"], ["Yes"], ["no"], ["No"]]
    assert days == [["1"], ["2"], ["1", "0"]]
    assert encoded[1].columns()["option_of_text"] == [0, 0, 1, 1]
    assert encoded[1].columns()["option_values"] == [1.0, 0.0]


def test_columns_of_a_target(smollm2_tokenizer):
    encoded = encode(smollm2_tokenizer, row(targets={"tone": [0, 2, 2, 2]}), require_targets=True)
    assert [one.question.id for one in encoded] == ["tone"]
    columns = encoded[0].columns()
    assert (columns["label"], columns["rating_values"], columns["rating_shares"]) == (1.5, [0.0, 2.0], [0.25, 0.75])
    assert encoded[0].target == Ratings((0.0, 2.0), (0.25, 0.75), 4)
    assert "label" not in encode(smollm2_tokenizer, row())[0].columns()


def test_questions_of_a_state_begin_alike(smollm2_tokenizer):
    """Up to the state's last token at least, so that it is computed once."""
    encoded = encode(smollm2_tokenizer, row(WORDS), template={"system": "You judge."})
    columns = itertools.takewhile(
        lambda ids: len(set(ids)) == 1, zip(*(one.input_ids for one in encoded), strict=False)
    )
    shared = [ids[0] for ids in columns]
    text = smollm2_tokenizer.decode(shared)
    assert "system\nYou judge." in text
    assert text.endswith(f"{WORDS}\n\nQuestion:")


def test_the_state_is_cut_and_never_the_question(smollm2_tokenizer):
    whole = encode(smollm2_tokenizer, row(WORDS))
    limit = max(len(one.input_ids) for one in whole) - 50
    cut = encode(smollm2_tokenizer, row(WORDS), max_length=limit)
    assert limit - 4 <= max(len(one.input_ids) for one in cut) <= limit
    assert all(one.was_cut for one in cut) and not any(one.was_cut for one in whole)
    states = [smollm2_tokenizer.decode(one.input_ids).partition("user\n")[2].partition("\n\n") for one in cut]
    # The beginning is kept, and all questions are about the same.
    assert len({state for state, _, _ in states}) == 1 and WORDS.startswith(states[0][0])
    ends = [smollm2_tokenizer.decode(one.input_ids).partition("\n\nQuestion:")[2] for one in whole]
    assert [end.removeprefix("Question:") for _, _, end in states] == ends
    assert encode(smollm2_tokenizer, row(WORDS), max_length=limit + 50) == whole


def test_a_model_without_a_chat(gemma3_tokenizer):
    with pytest.raises(ValueError, match=r"has no chat template.*question_template={'chat': False}"):
        QuestionEncoder(without_chat(gemma3_tokenizer))
    encoded = encode(without_chat(gemma3_tokenizer), row("Hi"), template={"chat": False, "replies": {"score": "A:"}})
    assert (
        gemma3_tokenizer.decode(encoded[0].input_ids)
        == "<bos>Hi\n\nQuestion: How polite?\n0: rude\n1: plain\n2: kind\nA: "
    )
    assert gemma3_tokenizer.convert_ids_to_tokens([ids[0] for (ids,) in encoded[0].label_token_ids]) == ["0", "1", "2"]


def without_chat(tokenizer):
    copied = copy.copy(tokenizer)
    copied.chat_template = None
    return copied


def refused(tokenizer, one, message, **options):
    with pytest.raises(ValueError, match=message):
        QuestionEncoder(
            tokenizer, **{name: value for name, value in options.items() if name != "require_targets"}
        ).encode([row(), one], 3, require_targets="require_targets" in options)


def test_what_cannot_be_encoded(smollm2_tokenizer, tokenizer):
    refused(smollm2_tokenizer, row(WORDS), "row 4: question 'tone': .* no room under `max_length=30`", max_length=30)
    refused(
        smollm2_tokenizer,
        row(),
        "row 4: question 'spam': its label 'indeed so' is the tokens .* must be one",
        template={"aliases": {"yes": ["indeed so"]}},
    )
    with pytest.raises(ValueError, match="row 0: no question of 'tone', 'spam', 'days' has a target"):
        encode(smollm2_tokenizer, row(), require_targets=True)
    # This vocabulary has no token for a whole "yes".
    with pytest.raises(ValueError, match="row 0: question 'spam': its label 'yes' is the tokens"):
        encode(tokenizer, row())


def test_a_template_that_always_thinks(tokenizer):
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    one = row(questions={"tone": QUESTIONS["tone"]})
    with pytest.raises(ValueError, match="question 'tone': the chat template opens a thought"):
        encode(tokenizer, one)


def test_labels_that_merge_into_the_prompt(smollm2_tokenizer):
    """ "DA" is one token."""
    merging = copy.copy(smollm2_tokenizer)
    merging.chat_template = "{{ messages[0]['content'] }}"
    one = row(questions={"team": {"type": "choice", "criteria": ["billing", "other"]}})
    with pytest.raises(
        ValueError, match=r"row 0: question 'team': its labels cannot be read. .*'A' merges into the end"
    ):
        encode(merging, one, template={"replies": {"choice": "Answer:D"}})


def test_a_pickle_does_not_change_with_use(smollm2_tokenizer):
    encoder = QuestionEncoder(smollm2_tokenizer, "sglang", max_length=500)
    before = pickle.dumps(encoder)
    encoder.encode([row()])
    assert pickle.dumps(encoder) == before
    again = pickle.loads(before)
    assert (again.template, again.max_length) == (encoder.template, 500)
