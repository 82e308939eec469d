"""Rows of `chosen` and `rejected`, as the prompts of both, in TRL's forms."""

import math

import pytest
import torch
from datasets import Dataset

from raft_peft import NumberGrid
from raft_peft.data.batches import RegressionCollator
from raft_peft.data.dataset import encode_dataset
from raft_peft.data.limits import ModelLimits
from raft_peft.data.preferences import PreferenceWriter, margin_of, may_prefer
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.prompts import PromptEncoder
from raft_peft.methods import METHODS

QUESTION = [{"role": "user", "content": "two?"}]
GOOD, BAD = [{"role": "assistant", "content": "2"}], [{"role": "assistant", "content": "3"}]
TEMPLATE = "Question: {prompt} Answer: {completion} Score:"


def prompts(row, template=None, **options):
    return [one["prompt"] for one in PreferenceWriter(PromptTemplate.of(template, **options))(row)]


class TestPrompts:
    @pytest.mark.parametrize(
        ("row", "written"),
        [
            ({"chosen": "It is 2.", "rejected": "It is 3."}, ["It is 2.", "It is 3."]),
            ({"prompt": "It is", "chosen": " 2.", "rejected": " 3."}, ["It is 2.", "It is 3."]),
            ({"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}, [[*QUESTION, *GOOD], [*QUESTION, *BAD]]),
            ({"chosen": [*QUESTION, *GOOD], "rejected": BAD}, [[*QUESTION, *GOOD], BAD]),
        ],
        ids=["implicit", "explicit", "chat", "implicit chat"],
    )
    def test_without_a_template_they_follow_the_prompt(self, row, written):
        assert prompts(row) == written

    @pytest.mark.parametrize(
        ("template", "row"),
        [
            (TEMPLATE, {"prompt": "two?", "chosen": "2", "rejected": "3"}),
            (TEMPLATE, {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}),
            ("Question: {task} Answer: {reply} Score:", {"task": "two?", "chosen": "2", "rejected": "3"}),
            ("Question: two?{more} Answer: {text} Score:", {"more": "", "chosen": "2", "rejected": "3"}),
            ("Question: two? Answer: {text} Score:", {"text": "", "chosen": "2", "rejected": "3"}),
        ],
        ids=["text", "chat", "other names", "an empty text", "one column"],
    )
    def test_they_fill_the_column_that_the_row_does_not_have(self, template, row):
        by_hand = ["Question: two? Answer: 2 Score:", "Question: two? Answer: 3 Score:"]
        assert prompts(row, template) == by_hand

    def test_a_template_of_the_prompt_alone_takes_both(self):
        row = {"prompt": "It is", "chosen": " 2.", "rejected": " 3."}
        assert prompts(row, chat=True) == [[{"role": "user", "content": f"It is {n}."}] for n in (2, 3)]
        assert prompts({"chosen": "2", "rejected": "3"}, chat=True)[1] == [{"role": "user", "content": "3"}]

    def test_a_row_without_a_preference_has_one_prompt(self):
        row = {"prompt": "two?", "completion": "2", "label": 1.0, "chosen": None, "rejected": ""}
        assert prompts(row, TEMPLATE) == ["Question: two? Answer: 2 Score:"]

    @pytest.mark.parametrize(
        ("row", "template", "message"),
        [
            ({"chosen": "2", "rejected": None}, None, "has 'chosen' and no 'rejected'"),
            ({"rejected": "2", "chosen": math.nan}, None, "has 'rejected' and no 'chosen'"),
            ({"chosen": "2", "rejected": "2"}, None, "are the same, '2'.*drop the row"),
            ({"prompt": "two?", "chosen": GOOD, "rejected": BAD}, None, "`prompt` is a text, and 'chosen' is a list"),
            ({"chosen": "2", "rejected": "3"}, TEMPLATE, "the row lacks 'prompt', 'completion'"),
            ({"text": "a", "chosen": "2", "rejected": "3"}, "{text}:", "the row has them all"),
        ],
    )
    def test_mistakes_are_told(self, row, template, message):
        with pytest.raises(ValueError, match=message):
            prompts(row, template)


def test_a_margin_is_a_number_or_none():
    assert [margin_of({"margin": raw}) for raw in (None, "", 0.5, "-1", 2)] == [0, 0, 0.5, -1, 2]
    for wrong in ("far", math.inf, True):
        with pytest.raises(ValueError, match="the margin is"):
            margin_of({"margin": wrong})


def test_what_is_a_dataset_of_preferences():
    assert may_prefer(["prompt", "chosen", "rejected", "label"], "label")
    assert may_prefer(["chosen"], "label")
    assert not may_prefer(["prompt", "label", "chosen"], "label")


def encoded(tokenizer, rows, *, template=None, max_length=None, limits=None):
    names = dict.fromkeys(name for row in rows for name in row)
    return encode_dataset(
        Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}),
        "train",
        PromptEncoder(tokenizer, NumberGrid([0, 1, 1.5]), max_length=max_length),
        label_column="label",
        method=METHODS["raft"],
        limits=limits,
        preferences=PreferenceWriter(PromptTemplate.of(template)),
    )


class TestEncoded:
    ROWS = (
        {"prompt": "a", "label": [1, 3]},
        {"chosen": "good", "rejected": "not so good", "margin": 0.5},
        {"prompt": "b", "label": [2]},
        {"chosen": "b", "rejected": "c"},
    )

    def test_a_batch_holds_both_prompts_and_counts_each_row_once(self, tokenizer):
        rows = list(encoded(tokenizer, self.ROWS))
        assert [row["label"] for row in rows] == [2.0, None, 2.0, None]
        batch = RegressionCollator(pad_token_id=0, preference_weight=0.25)(rows)
        texts = [
            tokenizer.decode(ids[mask.bool()])
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert texts == ["a", "good", "not so good", "b", "b", "c"]
        assert batch["pair"].tolist() == [0, 1, -1, 0, 1, -1]
        assert batch["row"].tolist() == [0, 1, 1, 2, 3, 3]
        assert batch["weights"].tolist() == [1, 0.25, 0, 1, 0.25, 0]
        assert batch["margins"].tolist() == [0, 0.5, 0.5, 0, 0, 0]
        assert batch["labels"].isnan().tolist() == [False, True, True, False, True, True]
        assert batch["rating_values"][0].tolist() == [1, 3]
        assert {len(tensor) for tensor in batch.values()} == {6}
        assert isinstance(batch["trie_nodes"], torch.Tensor)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": None}], "row 1: it has 'chosen' and no"),
            (
                [{"prompt": "a", "label": 1.0}, {"chosen": "a", "rejected": "b", "label": 2.0}],
                "row 1: .*has the label",
            ),
            ([{"prompt": "a", "label": 1.0}, {"chosen": "a", "rejected": ""}], "row 1: it has 'chosen' and no"),
            ([{"chosen": "a", "rejected": "b"}, {"prompt": "a", "chosen": None}], "row 1: it has neither"),
            ([{"chosen": "a", "rejected": "b"}, {"prompt": "a", "label": None}], "row 1: the label"),
            ([{"chosen": "a b c d e", "rejected": "x b c d e"}], "row 0: the prompts .* have the same tokens"),
        ],
    )
    def test_mistakes_name_the_row(self, tokenizer, rows, message):
        with pytest.raises(ValueError, match=message):
            encoded(tokenizer, rows, max_length=3)

    def test_the_rejected_prompt_must_fit_the_model_too(self, tokenizer):
        rows = [{"prompt": "a", "label": 1.0}, {"chosen": "a", "rejected": "a b c d e f g h"}]
        with pytest.raises(ValueError, match=r"row 1: the prompt with its number has .* the model has 6 positions"):
            encoded(tokenizer, rows, limits=ModelLimits(positions=6))
