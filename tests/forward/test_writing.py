"""Texts that the model writes behind prompts."""

import pytest
import torch

from raft_peft.data.reasoning.reasonings import ScorePrefix
from raft_peft.forward import writing
from raft_peft.forward.writing import Written, write_texts

PROMPTS = ["Rate tea:", "Rate a cup of very hot tea, and say why:", "Rate the item 7 from 0 to 9: the score is 7 of"]


def greedy(model, tokenizer, prompt, count):
    """One token after the other, without a cache."""
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return tokenizer.decode(ids[-count:])


@pytest.mark.parametrize("cache_is_copied", [True, False])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma2"])
def test_most_likely_texts_of_a_padded_batch(name, cache_is_copied, request, tokenizer, monkeypatch):
    model = request.getfixturevalue(name).eval()
    if not cache_is_copied:
        monkeypatch.delattr("transformers.cache_utils.Cache.batch_repeat_interleave")
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    # Texts that are drawn at next to no temperature are the most likely ones.
    options = {"temperature": 1e-4, "max_new_tokens": 6, "stop": "[RESULT]"}
    texts = write_texts(model, tokenizer, prompts, count=3, **options)
    expected = [greedy(model, tokenizer, prompt, 6) for prompt in PROMPTS]
    assert [[one.text for one in row] for row in texts] == [[text] * 3 for text in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Fine.\n[RESULT]", Written(" Fine.\n", True)),
        ("[RESULT] 3", Written("", True)),
        (" Fine.<eos><pad><pad>", Written(" Fine.", True)),
        (" Fine.<eos>[RESULT]", Written(" Fine.", True)),
        (" It goes on", Written(" It goes on", False)),
        ("", Written("", False)),
    ],
)
def test_where_a_text_ends(tokenizer, text, expected):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert writing._written(ids, tokenizer, {tokenizer.eos_token_id}, "[RESULT]") == expected


def test_a_thought_ends_at_its_mark(byte_level):
    prefix = ScorePrefix("\n</think>\n\nScore: ")
    ids = byte_level(" Fine.\n</think>\n\nSo it is good.<eos>", add_special_tokens=False)["input_ids"]
    found = writing._written(ids, byte_level, {byte_level.eos_token_id}, prefix.end_of_reasoning)
    assert found == Written(" Fine.\n", True)
    assert prefix.behind(found.text) == "Fine.\n</think>\n\nScore:"
    assert ScorePrefix("\nSo the score is ").end_of_reasoning == "So the score is"
