"""Prompts and labels against what vLLM's own functions gave; see tests/support/vllm_questions.py."""

import json

import pytest
from support.vllm_questions import FIXTURE, QUESTIONS, STATES, TEMPLATES, tokenizer_of

from raft_peft.data.questions.encoder import QuestionEncoder
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.questions.template import QuestionTemplate, labels_of


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_and_labels_are_those_of_vllm(name):
    reads = iter(json.loads(FIXTURE.read_text(encoding="utf-8"))["reads"][name])
    template = QuestionTemplate()
    rows = [QuestionRow.of({"state": state, "questions": QUESTIONS}) for state in STATES]
    for row, encoded in zip(rows, QuestionEncoder(tokenizer_of(name)).encode(rows), strict=True):
        for question, one in zip(row.questions, encoded, strict=True):
            theirs = next(reads)
            assert template.content(template.state_text(row.state), question) == theirs["content"]
            assert one.input_ids == theirs["prompt_ids"]
            assert list(labels_of(question)) == theirs["labels"]
            assert [[token for (token,) in option] for option in one.label_token_ids] == theirs["label_groups"]
    assert next(reads, None) is None
