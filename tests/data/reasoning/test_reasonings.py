"""Reasonings that cannot be used, each an error with its row and the cure."""

import numpy as np
import pytest
from support.training import GRID

from raft_peft import NumberGrid
from raft_peft.data.prompts import PromptEncoder
from raft_peft.data.reasoning.reasonings import SCORE_PREFIX, ScorePrefix, reasonings_of
from raft_peft.data.reasoning.rows import spread_reasonings

PROMPT = "Rate tea, and say why:"


def encode(tokenizer, rows, prefix=SCORE_PREFIX, **options):
    encoder = PromptEncoder(tokenizer, NumberGrid(GRID), score_prefix=ScorePrefix(prefix), **options)
    spread, places = spread_reasonings(rows, range(len(rows)))
    return encoder.encode(spread, numbers=places)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"reasoning": "Good.\n[RESULT] 3"}, r"already holds the words .*'\[RESULT\]'.* put the score into the label"),
        ({"reasoning": "Good. So the score is 3."}, r"ends in its score already, 'score is 3.'.* Leave out"),
        ({"reasoning": "Good. Overall rating: 4 out of 5"}, "ends in its score already"),
        ({"reasoning": " \n"}, "A reasoning is empty. Write one, or leave the column null"),
        ({"reasoning": []}, "A reasoning is empty"),
        ({"reasoning": ["Good", ""]}, "A reasoning is empty"),
        ({"reasoning": 3}, "The reasoning is 3. It must be a text, or a list of texts"),
        ({"reasoning": ["Good", None]}, "It must be a text, or a list of texts"),
        ({"reasoning": {"text": "Good"}}, "It must be a text, or a list of texts"),
        (
            {"reasoning": "Good<eos>"},
            "The reasoning holds '<eos>', which closes the turn before the score. Leave it out",
        ),
        ({"prompt": "", "reasoning": "Good"}, "The prompt is empty"),
        ({"prompt": f"{PROMPT} <eos>\n", "reasoning": "Good"}, "The prompt ends in '<eos>', which closes the turn"),
        ({"prompt": f"{PROMPT} <eos>\n", "reasoning": None}, "The prompt ends in '<eos>', which closes the turn"),
    ],
)
def test_names_row_reason_and_cure(tokenizer, row, message):
    rows = [{"prompt": PROMPT, "reasoning": "It is fine"}, {"prompt": PROMPT, **row}]
    with pytest.raises(ValueError, match=rf"(?s)1 row\(s\) cannot be used:\n  row 1: .*{message}"):
        encode(tokenizer, rows)


def test_numbers_that_are_no_score_stay(tokenizer):
    reasonings = ["It has 3 parts.", "A rating of 3 would be unfair, since it works", "The score is 9.", "In 2004"]
    assert len(encode(tokenizer, [{"prompt": PROMPT, "reasoning": reasonings}])) == 4


def test_a_lead_in_that_merges_with_the_number(tokenizer):
    with pytest.raises(ValueError, match=r"row 0: The number .* merges into .* Here `score_prefix='\\nof 1'` ends it"):
        encode(tokenizer, [{"prompt": PROMPT, "reasoning": "Good"}], prefix="\nof 1")
    with pytest.raises(ValueError, match=r"`score_prefix='\\n'` has no words"):
        ScorePrefix("\n")


def test_a_chat_template_that_closes_the_turn(tokenizer):
    row = {"prompt": [{"role": "user", "content": "Rate tea"}], "reasoning": "Good"}
    (found,) = encode(tokenizer, [row])
    assert tokenizer.decode(found.input_ids) == "user: Rate tea\nassistant:\nGood\n[RESULT]"
    assert tokenizer.decode(found.input_ids[-found.reasoning_tokens :]) == "Good\n[RESULT]"
    begun = [*row["prompt"], {"role": "assistant", "content": "Feedback:"}]
    (found,) = encode(tokenizer, [{**row, "prompt": begun}])
    assert tokenizer.decode(found.input_ids) == "user: Rate tea\nassistant: Feedback: Good\n[RESULT]"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<eos>\n' }}{% endfor %}"
    with pytest.raises(
        ValueError, match=r"row 0: The prompt ends in '<eos>'.* a chat template with a generation prompt"
    ):
        encode(tokenizer, [row])
    # The end that the template writes behind a message that goes on is left out.
    assert len(encode(tokenizer, [{**row, "prompt": begun}])) == 1


def test_of_a_row_in_any_table():
    assert reasonings_of({}) == reasonings_of({"reasoning": None}) == reasonings_of({"reasoning": float("nan")}) == []
    assert reasonings_of({"reasoning": "One"}) == reasonings_of({"reasoning": np.array(["One"])}) == ["One"]


class TestWhatIsCut:
    def test_all_reasonings_of_a_row_share_the_prompt_that_is_left(self, tokenizer):
        reasonings = ["It", "It is hot, and very good", "Nobody dislikes it"]
        rows = [{"prompt": f"{PROMPT} {PROMPT} {PROMPT}", "reasoning": reasonings}, {"prompt": "Rate it:"}]
        whole = encode(tokenizer, rows)
        most = max(len(one.input_ids) for one in whole) - 5
        found = encode(tokenizer, rows, max_length=most)
        assert [one.was_cut for one in found] == [True, True, True, False]
        prompts = [one.input_ids[: -one.reasoning_tokens] for one in found[:3]]
        assert prompts[0] == prompts[1] == prompts[2] == whole[0].input_ids[5 : -whole[0].reasoning_tokens]
        assert max(len(one.input_ids) for one in found) == most
        assert [one.reasoning_tokens for one in found] == [one.reasoning_tokens for one in whole]
        assert found[3] == whole[3] and not any(one.reasoning_was_cut for one in found)

    @pytest.mark.parametrize("reasoning", ["It is one of the best that there ever was " * 3, "é" * 60])
    def test_the_score_and_its_words_stay(self, tokenizer, reasoning):
        (found,) = encode(tokenizer, [{"prompt": PROMPT, "reasoning": reasoning}], max_length=40)
        assert found.reasoning_was_cut and len(found.input_ids) <= 40
        text = tokenizer.decode(found.input_ids)
        assert text.endswith("\n[RESULT]") and "\ufffd" not in text
        assert text.startswith(f"{PROMPT} {reasoning[:3]}") or found.was_cut

    def test_no_room_for_the_words(self, tokenizer):
        for reasoning in ("Good", None):
            with pytest.raises(ValueError, match=r"`max_length=8` leaves no room .* Raise `max_length`, or shorten"):
                encode(tokenizer, [{"prompt": PROMPT, "reasoning": reasoning}], max_length=8)
