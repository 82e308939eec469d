"""Every tokenizer, every grid, every end of a prompt: the ids are right by an independent check, or it is said why.

Right is what the tokenizer gives for the whole sentence, cut where the prompt ends: the same ids, and the same text
when they are decoded. Where no cut does that for all numbers, there must be the error that names the number.
"""

from itertools import product

import pytest
from support.real_tokenizers import CHAT_TEMPLATE, REAL_TOKENIZERS, real_tokenizer

from raft_peft import NumberGrid
from raft_peft.data.prompts import PromptEncoder

GRIDS = {
    "1 to 5": [1, 2, 3, 4, 5],
    "0 to 9": range(10),
    "0 to 100": range(101),
    "tenths": [n / 10 for n in range(51)],
    "negatives": [-2, -1, 0, 1, 2],
    "letters": {1: "A", 2: "B", 3: "C", 4: "D"},
    "months": {1: "January", 2: "February", 3: "March", 4: "April", 5: "May", 6: "June"},
}
ENDS = {
    "word": "The score is",
    "colon": "Score:",
    "space": "Score: ",
    "two spaces": "Score:  ",
    "new line": "Score:\n",
    "tab": "Score:\t",
    "bracket": "Score (",
    "square bracket": "Score [",
    "quote": 'Score "',
    "digit": "Of 10",
    "decimal point": "Score 3.",
    "minus": "Score -",
    "currency": "Price: $",
    "slash": "5/",
    "equals": "score=",
    "Chinese": "评分是",
    "Arabic": "التقييم",
    "emoji": "Rate it ⭐",
    "combining": "café",
    "one letter": "x",
}
SEPARATORS = {"default": None, "nothing": "", "space": " ", "new line": "\n"}


def plain(text, separator):
    if separator is not None:
        return text + separator
    return text if text[-1].isspace() else f"{text} "


def common_beginning(sequences):
    shortest = min(map(len, sequences))
    return next((n for n in range(shortest) if len({sequence[n] for sequence in sequences}) > 1), shortest)


def check(tokenizer, grid, prompt, separator, opening, special):
    """Whether the numbers could be resolved."""
    grid = NumberGrid(grid)

    def ids_of(text):
        return tokenizer(text, add_special_tokens=special)["input_ids"]

    def text_of(ids):
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    sentences = [ids_of(opening + text) for text in grid.texts]
    try:
        (encoded,) = PromptEncoder(tokenizer, grid, separator=separator).encode([{"prompt": prompt}])
    except ValueError as error:
        # No beginning that all sentences have in common with the prompt holds the whole prompt's text
        shared = common_beginning([ids_of(opening), *sentences])
        written = text_of(sentences[0][:shared])
        assert text_of(ids_of(opening)).rstrip() != written.rstrip(), (prompt, str(error))
        assert "merges into the end of the prompt" in str(error) or "begins inside the prompt" in str(error), error
        assert any(repr(text) in str(error) for text in grid.texts), error
        return False
    for sentence, text, number in zip(sentences, grid.texts, encoded.grid_token_ids, strict=True):
        assert [*encoded.input_ids, *number] == sentence, (prompt, text)
        assert text_of(sentence).endswith(opening + text), (prompt, text, text_of(sentence))
        assert text_of(number).strip() == text
    return True


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_plain_prompts(name, grid, record_property):
    tokenizer = real_tokenizer(name)
    resolved = [
        check(tokenizer, grid, text, separator, plain(text, separator), special=True)
        for text, separator in product(ENDS.values(), SEPARATORS.values())
    ]
    record_property("resolved", sum(resolved))
    record_property("refused", len(resolved) - sum(resolved))
    assert all(resolved[:4])  # behind a word


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_chats(name, grid, record_property, monkeypatch):
    tokenizer = real_tokenizer(name)
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template or CHAT_TEMPLATE)
    resolved = []
    for text in ENDS.values():
        messages = [{"role": "user", "content": text}]
        opening = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        resolved.append(check(tokenizer, grid, messages, None, opening, special=False))
    record_property("resolved", sum(resolved))
    assert all(resolved)
