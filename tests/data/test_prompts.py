import json

import pytest

from raft_peft import NumberGrid
from raft_peft.data.prompts import PromptEncoder

GRID = NumberGrid(range(5))
CHAT = [{"role": "user", "content": "Rate the item 3"}]


def encode(tokenizer, row, **options):
    return PromptEncoder(tokenizer, GRID, **options).encode([row])[0]


def grid_tokens(tokenizer, encoded):
    """The grid's tokens, each number being one."""
    return tokenizer.convert_ids_to_tokens([token_id for (token_id,) in encoded.grid_token_ids])


def test_text_ends_where_the_number_begins(tokenizer):
    encoded = encode(tokenizer, {"prompt": "the score is"})
    assert tokenizer.decode(encoded.input_ids) == "the score is"
    assert grid_tokens(tokenizer, encoded) == ["Ġ0", "Ġ1", "Ġ2", "Ġ3", "Ġ4"]
    assert not encoded.was_cut


def test_a_chat_ends_after_the_generation_prompt_with_no_space(tokenizer):
    encoded = encode(tokenizer, {"prompt": CHAT})
    assert tokenizer.decode(encoded.input_ids) == "user: Rate the item 3\nassistant:\n"
    assert grid_tokens(tokenizer, encoded) == ["0", "1", "2", "3", "4"]


def test_a_chat_of_a_real_model(smollm2_tokenizer):
    encoded = encode(smollm2_tokenizer, {"prompt": CHAT})
    expected = smollm2_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert encoded.input_ids == expected
    assert grid_tokens(smollm2_tokenizer, encoded) == ["0", "1", "2", "3", "4"]


def test_a_chat_may_begin_the_answer(smollm2_tokenizer):
    encoded = encode(smollm2_tokenizer, {"prompt": [*CHAT, {"role": "assistant", "content": "The score is"}]})
    assert smollm2_tokenizer.decode(encoded.input_ids).endswith("assistant\nThe score is ")


def test_chat_template_options_of_a_row(tokenizer):
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if loud %}!{% endif %} is"
    row = {"prompt": CHAT, "chat_template_kwargs": {"loud": True}}
    assert tokenizer.decode(encode(tokenizer, row).input_ids) == "Rate the item 3! is"


@pytest.mark.parametrize("as_json", [False, True])
def test_tools_as_a_list_or_as_json(tokenizer, as_json):
    tokenizer.chat_template = "{{ tools[0]['name'] }}: {{ messages[0]['content'] }} is"
    tools = [{"name": "search"}]
    row = {"prompt": CHAT, "tools": json.dumps(tools) if as_json else tools}
    assert tokenizer.decode(encode(tokenizer, row).input_ids) == "search: Rate the item 3 is"


def test_the_separator_can_be_set(tokenizer):
    encoded = encode(tokenizer, {"prompt": "score"}, separator=" (")
    assert tokenizer.decode(encoded.input_ids) == "score ("
    assert grid_tokens(tokenizer, encoded)[3] == "3"
    encoded = encode(tokenizer, {"prompt": CHAT}, separator="the score is ")
    assert tokenizer.decode(encoded.input_ids).endswith("assistant:\nthe score is")
    assert grid_tokens(tokenizer, encoded)[3] == "Ġ3"


@pytest.mark.parametrize(
    "name", ["byte_level", "sentencepiece", "word_level", "smollm2_tokenizer", "gemma3_tokenizer"]
)
@pytest.mark.parametrize("prompt", ["the score is", "the score is ", "score:", "score (", "the score is:\n"])
def test_pretokenized_rows_are_read_like_their_text(name, prompt, request):
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer(prompt).input_ids
    from_text, from_ids = (encode(tokenizer, row) for row in ({"prompt": prompt}, {"input_ids": ids}))
    assert from_ids == from_text


def test_pretokenized_rows_may_begin_with_what_no_text_gives(tokenizer):
    ids = tokenizer("the score is").input_ids
    odd = [tokenizer.convert_tokens_to_ids(token) for token in ("e", "t")] * 20  # the text "et" has other tokens
    assert encode(tokenizer, {"input_ids": odd + ids}).input_ids == odd + ids


def test_pretokenized_rows_that_end_in_a_special_token_take_no_space(tokenizer):
    encoded = encode(tokenizer, {"input_ids": [*tokenizer("the score is").input_ids, tokenizer.unk_token_id]})
    assert encoded.input_ids[-1] == tokenizer.unk_token_id
    assert grid_tokens(tokenizer, encoded)[3] == "3"


def test_cutting_keeps_the_end(tokenizer):
    prompt = "Rate the item 27 from 0 to 9: the score is"
    whole, cut = (encode(tokenizer, {"prompt": prompt}, max_length=length) for length in (None, 4))
    assert cut.input_ids == whole.input_ids[-4:]
    assert cut.was_cut
    assert cut.grid_token_ids == whole.grid_token_ids


def test_cutting_keeps_the_leading_bos(gemma3_tokenizer):
    prompt = "Rate the item 27 from 0 to 9: the score is"
    whole, cut = (encode(gemma3_tokenizer, {"prompt": prompt}, max_length=length) for length in (None, 6))
    assert cut.input_ids == [gemma3_tokenizer.bos_token_id, *whole.input_ids[-5:]]


def test_cutting_keeps_all_leading_special_tokens(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<bos>", "extra_special_tokens": ["<sop>"]})
    leading = tokenizer.convert_tokens_to_ids(["<bos>", "<sop>"])
    ids = tokenizer("Rate the item 27 from 0 to 9: the score is").input_ids
    row = {"input_ids": [*leading, *ids]}
    assert encode(tokenizer, row, max_length=6).input_ids == [*leading, *ids[-4:]]
    # One token of the end is left where the special ones would fill all.
    assert encode(tokenizer, row, max_length=2).input_ids == [leading[0], ids[-1]]


def test_max_length_without_room(tokenizer):
    with pytest.raises(ValueError, match="`max_length=1` leaves no room"):
        PromptEncoder(tokenizer, GRID, max_length=1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty. Fill the column `prompt`, or drop the row"),
        ({"prompt": []}, "must be a text"),
        ({"prompt": 3}, "must be a text"),
        ({"input_ids": []}, "input_ids are empty"),
    ],
)
def test_rows_without_a_prompt(tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        encode(tokenizer, row)


def test_a_row_without_a_column_of_prompts(tokenizer):
    with pytest.raises(ValueError, match=r"row 0: The row has the columns \['text'\], and neither `prompt` nor"):
        encode(tokenizer, {"text": "a"})


def test_a_chat_without_a_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode(tokenizer, {"prompt": CHAT})


def test_the_error_names_the_rows(tokenizer):
    rows = [{"prompt": "fine"}, *[{"prompt": ""}] * 7]
    with pytest.raises(ValueError, match=r"7 row\(s\) cannot be used") as error:
        PromptEncoder(tokenizer, GRID).encode(rows, first_row=100)
    assert "row 101" in str(error.value)
    assert "row 105" in str(error.value)
    assert "and 2 more" in str(error.value)


def test_a_row_that_swallows_the_number_is_shown(tokenizer):
    encoder = PromptEncoder(tokenizer, GRID, separator="")
    with pytest.raises(ValueError, match=r"row 1: The number '\d' merges into the end of the prompt 'the item 2'"):
        encoder.encode([{"prompt": "the item "}, {"prompt": "the item 2"}])
