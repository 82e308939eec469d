from copy import deepcopy

import pytest

from raft_peft import NumberGrid
from raft_peft.grid.number_end import NumberEnd
from raft_peft.grid.resolution import resolve

GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
)
GRID = NumberGrid([1, 10, 2])


def test_the_end_of_a_turn_is_that_of_the_chat_template(smollm2_tokenizer):
    end = NumberEnd.of("end_of_turn", smollm2_tokenizer)
    assert smollm2_tokenizer.convert_ids_to_tokens(end.token_id) == "<|im_end|>"


def test_a_token_follows_the_numbers_that_others_begin_with(smollm2_tokenizer):
    eos = smollm2_tokenizer.eos_token_id
    end = NumberEnd.of("eos", smollm2_tokenizer)
    assert resolve(GRID, smollm2_tokenizer, "Score:", number_end=end).token_ids == ((33, eos), (33, 32), (34,))
    every = NumberEnd.of("eos", smollm2_tokenizer, every_number=True)
    assert resolve(GRID, smollm2_tokenizer, "Score:", number_end=every).token_ids == (
        (33, eos),
        (33, 32, eos),
        (34, eos),
    )


def test_a_text_follows_as_the_tokenizer_writes_it(smollm2_tokenizer):
    end = NumberEnd.of(".", smollm2_tokenizer)
    resolved = resolve(GRID, smollm2_tokenizer, "Score:", number_end=end)
    assert list(resolved.prompt_ids + resolved.token_ids[0]) == smollm2_tokenizer("Score: 1.").input_ids
    assert resolved.token_ids[1:] == ((33, 32), (34,))


def test_a_text_that_stands_in_a_number_is_refused(smollm2_tokenizer):
    end = NumberEnd.of(".", smollm2_tokenizer)
    with pytest.raises(ValueError, match=r"'1' with its end .* is the beginning of another.*number_end"):
        resolve(NumberGrid([1, 1.5]), smollm2_tokenizer, "Score:", number_end=end)


def test_ends_that_the_tokenizer_lacks(byte_level):
    with pytest.raises(ValueError, match="no chat template"):
        NumberEnd.of("end_of_turn", byte_level)


@pytest.mark.parametrize("every_number", [False, True])
def test_grid_is_no_end_of_its_own(byte_level, every_number):
    assert NumberEnd.of("grid", byte_level, every_number=every_number) == NumberEnd()


@pytest.mark.parametrize("text", [".", "\n", " stars"])
def test_any_other_name_is_the_text_itself(byte_level, text):
    end = NumberEnd.of(text, byte_level, every_number=True)
    assert end == NumberEnd(text=text, every_number=True)


def test_the_end_of_a_turn_may_be_the_end_of_sentence(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    end = NumberEnd.of("end_of_turn", tokenizer, every_number=True)
    assert end == NumberEnd(token_id=tokenizer.eos_token_id, every_number=True)


def test_a_turn_that_ends_in_plain_text(tokenizer):
    with pytest.raises(ValueError, match=r"puts '\\n' after .* not begin with a special token.*`number_end` to this"):
        NumberEnd.of("end_of_turn", tokenizer)


def test_a_tokenizer_without_end_of_sequence(byte_level):
    tokenizer = deepcopy(byte_level)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no end-of-sequence token. Set tokenizer.eos_token, or"):
        NumberEnd.of("eos", tokenizer)


@pytest.mark.parametrize("every_number", [False, True])
@pytest.mark.parametrize("name", ["eos", "\n", " stars"])
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "smollm2_tokenizer", "gemma3_tokenizer"])
def test_the_ids_are_those_of_the_whole_sentence(kind, name, every_number, request):
    tokenizer = request.getfixturevalue(kind)
    grid, prompt = NumberGrid([1, 10, 1.5]), "the score is"
    plain = resolve(grid, tokenizer, prompt).token_ids
    resolved = resolve(grid, tokenizer, prompt, number_end=NumberEnd.of(name, tokenizer, every_number=every_number))
    for text, number, ids in zip(grid.texts, plain, resolved.token_ids, strict=True):
        begins_another = any(other[: len(number)] == number != other for other in plain)
        end = (tokenizer.eos_token if name == "eos" else name) if every_number or begins_another else ""
        assert [*resolved.prompt_ids, *ids] == tokenizer(f"{prompt} {text}{end}").input_ids
    assert not any(
        one == other[: len(one)] for one in resolved.token_ids for other in resolved.token_ids if one != other
    )


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "smollm2_tokenizer", "gemma3_tokenizer"])
def test_a_point_does_not_tell_a_number_from_its_decimals(kind, request):
    tokenizer = request.getfixturevalue(kind)
    with pytest.raises(ValueError, match=r"'1' with its end .* is the beginning of another, .*Set `number_end` to"):
        resolve(NumberGrid([1, 10, 1.5]), tokenizer, "the score is", number_end=NumberEnd.of(".", tokenizer))


def test_an_end_that_leaves_no_token_does_not_tell_numbers_apart(word_level):
    grid, end = NumberGrid({1: "1", 2: "1 2"}), NumberEnd.of("\n", word_level)
    with pytest.raises(ValueError, match=r"'1' with its end \['1'\] is the beginning of another, \['1', '2'\]"):
        resolve(grid, word_level, "score is", number_end=end)


def test_an_end_that_the_tokenizer_does_not_know(word_level):
    end = NumberEnd.of(" stars", word_level, every_number=True)
    with pytest.raises(ValueError, match="no token for the grid text '1"):
        resolve(NumberGrid([1, 2]), word_level, "score is", number_end=end)


def test_the_end_of_turn_of_gemma(gemma3_tokenizer, monkeypatch):
    monkeypatch.setattr(gemma3_tokenizer, "chat_template", GEMMA)
    end = NumberEnd.of("end_of_turn", gemma3_tokenizer)
    assert gemma3_tokenizer.convert_ids_to_tokens(end.token_id) == "<end_of_turn>"
