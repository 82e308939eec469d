from copy import deepcopy

import pytest
from conftest import as_hugging_face
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from raft_peft import NumberGrid
from raft_peft.grid.number_end import NumberEnd
from raft_peft.grid.resolution import Context, GridResolver, resolve

ENDINGS = {
    "word": "the score is",
    "space": "the score is ",
    "colon": "score:",
    "newline": "score:\n",
    "bracket": "score (",
    "digit": "the score of item 27",
}
TOKENIZERS = ["byte_level", "sentencepiece", "word_level", "smollm2_tokenizer", "gemma3_tokenizer"]


class TestResolve:
    def test_gpt2_style_puts_the_space_into_the_number(self, byte_level):
        resolved = resolve(NumberGrid([2, 3]), byte_level, "the score is")
        assert byte_level.convert_ids_to_tokens([ids[0] for ids in resolved.token_ids]) == ["Ġ2", "Ġ3"]
        assert byte_level.decode(resolved.prompt_ids) == "the score is"

    @pytest.mark.parametrize("name", ["sentencepiece", "smollm2_tokenizer", "gemma3_tokenizer"])
    def test_a_lone_space_ends_the_prompt(self, name, request):
        tokenizer = request.getfixturevalue(name)
        resolved = resolve(NumberGrid([2, 3]), tokenizer, "the score is")
        assert tokenizer.convert_ids_to_tokens([ids[0] for ids in resolved.token_ids]) == ["2", "3"]
        assert tokenizer.convert_ids_to_tokens(resolved.prompt_ids[-1]) in ("Ġ", "▁")

    @pytest.mark.parametrize(
        ("name", "prompt", "ids"),
        [
            ("smollm2_tokenizer", "Score:", (32, 33, 41)),
            ("gemma3_tokenizer", "Score:", (236771, 236770, 236819)),
            ("gemma3_tokenizer", "Score:\n", (236771, 236770, 236819)),
        ],
    )
    def test_known_ids_of_real_vocabularies(self, name, prompt, ids, request):
        resolved = resolve(NumberGrid([0, 1, 9]), request.getfixturevalue(name), prompt)
        assert resolved.token_ids == tuple((one,) for one in ids)

    def test_leading_special_tokens_stay_in_front(self, gemma3_tokenizer):
        resolved = resolve(NumberGrid([1, 2]), gemma3_tokenizer, "Score:")
        assert resolved.prompt_ids[0] == gemma3_tokenizer.bos_token_id
        assert resolved.prompt_ids.count(gemma3_tokenizer.bos_token_id) == 1

    def test_a_bos_written_into_the_prompt_is_not_doubled(self, gemma3_tokenizer):
        resolved = resolve(NumberGrid([1, 2]), gemma3_tokenizer, "<bos>Score:")
        assert resolved.prompt_ids.count(gemma3_tokenizer.bos_token_id) == 1

    def test_trailing_special_tokens_never_stand_before_the_number(self, byte_level):
        tokenizer = deepcopy(byte_level)
        eos = tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<eos> $A <eos>", special_tokens=[("<eos>", eos)]
        )
        assert tokenizer("score").input_ids[-1] == eos
        resolved = resolve(NumberGrid([1, 2]), tokenizer, "score is")
        assert resolved.prompt_ids[0] == eos
        assert eos not in resolved.prompt_ids[1:]

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("name", TOKENIZERS)
    def test_the_ids_are_those_of_the_whole_sentence(self, name, ending, request):
        """Independent check: prompt ids + number ids are the tokenizer's own encoding of the written-out sentence."""
        tokenizer = request.getfixturevalue(name)
        grid, prompt = NumberGrid(range(10)), ENDINGS[ending]
        resolved = resolve(grid, tokenizer, prompt)
        space = "" if ending in ("space", "newline") else " "
        for text, ids in zip(grid.texts, resolved.token_ids, strict=True):
            assert [*resolved.prompt_ids, *ids] == tokenizer(prompt + space + text).input_ids
            assert tokenizer.decode(ids).strip() == text

    def test_several_tokens(self, smollm2_tokenizer):
        resolved = resolve(NumberGrid([1, 10]), smollm2_tokenizer, "Score:")
        assert resolved.token_ids == ((33,), (33, 32))

    def test_a_number_that_merges_into_the_prompt_names_the_tokens_and_the_cure(self, byte_level):
        # Without a separator "2" + "7" is the one number 27 of the vocabulary.
        with pytest.raises(ValueError, match=r"merges into the end of the prompt.*'Ġ27'.*End the prompt with a space"):
            resolve(NumberGrid([7, 8]), byte_level, "of item 2", separator="")

    def test_a_value_that_the_tokenizer_does_not_know(self, word_level):
        with pytest.raises(ValueError, match="no token for the grid text '77777'"):
            resolve(NumberGrid([1, 77777]), word_level, "score is")

    def test_two_values_of_the_same_token(self, byte_level):
        tokenizer = deepcopy(byte_level)
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        with pytest.raises(ValueError, match="'A' and 'a' are the same tokens"):
            resolve(NumberGrid({1: "A", 2: "a"}), tokenizer, "score is")

    @pytest.mark.parametrize("prompt", ["", "   ", "\n"])
    def test_an_empty_prompt(self, byte_level, prompt):
        with pytest.raises(ValueError, match="prompt is empty"):
            resolve(NumberGrid([1, 2]), byte_level, prompt)

    def test_many_contexts_give_what_each_gives_alone(self, smollm2_tokenizer):
        grid = NumberGrid([1, 2])
        contexts = [Context(text, " ") for text in ("a:", "a longer one:", "", "b:")]
        together = GridResolver(grid, smollm2_tokenizer).resolve(contexts)
        assert isinstance(together[2], ValueError)
        for index in (0, 1, 3):
            assert together[index] == resolve(grid, smollm2_tokenizer, contexts[index].text)


class Counting:
    """A tokenizer that counts the sentences it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.sentences = tokenizer, 0

    def __call__(self, texts, **options):
        self.sentences += 1 if isinstance(texts, str) else len(texts)
        return self.tokenizer(texts, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def whole_sentences(tokenizer, grid, context):
    return tokenizer([context.opening + text for text in grid.texts])["input_ids"]


class TestTails:
    """Prompts that end alike have the grid tokenized once."""

    @pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "smollm2_tokenizer", "gemma3_tokenizer"])
    def test_a_large_grid_costs_a_prompt_a_few_sentences(self, name, request):
        tokenizer = Counting(request.getfixturevalue(name))
        grid = NumberGrid(range(1000))
        contexts = [Context(f"Rate the item {n} from 0 to 999: the score is", " ") for n in range(200)]
        resolved = GridResolver(grid, tokenizer).resolve(contexts)
        assert tokenizer.sentences < len(grid) + 3 * len(contexts)
        for row in (0, 7, 199):
            sentences = whole_sentences(tokenizer, grid, contexts[row])
            assert [[*resolved[row].prompt_ids, *ids] for ids in resolved[row].token_ids] == sentences

    def test_tails_are_kept_from_batch_to_batch(self, smollm2_tokenizer):
        tokenizer = Counting(smollm2_tokenizer)
        resolver = GridResolver(NumberGrid(range(100)), tokenizer, NumberEnd(text="\n"))
        contexts = [Context(f"Rate the item {n} from 0 to 99: the score is", " ") for n in range(4)]
        first = resolver.resolve(contexts[:2])
        tokenizer.sentences = 0
        second = resolver.resolve(contexts[2:])
        assert tokenizer.sentences < 10
        assert {one.token_ids for one in first} == {one.token_ids for one in second}

    def test_a_prompt_of_other_letters_than_its_tokens_takes_the_whole_sentences(self, byte_level):
        tokenizer = deepcopy(byte_level)
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        tokenizer, grid = Counting(tokenizer), NumberGrid(range(20))
        contexts = [Context(f"ITEM {n} OF THE LIST FROM 0 TO 19 IS A SCORE OF", " ") for n in range(3)]
        resolved = GridResolver(grid, tokenizer).resolve(contexts)
        assert tokenizer.sentences > len(grid) * len(contexts)
        for context, one in zip(contexts, resolved, strict=True):
            assert [[*one.prompt_ids, *ids] for ids in one.token_ids] == whole_sentences(tokenizer, grid, context)

    @pytest.mark.parametrize("prompt", ["😀" * 20, "評価" * 9 + "は", "the score " + "é" * 15, "a" * 50, "-" * 50])
    @pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "smollm2_tokenizer", "gemma3_tokenizer"])
    def test_prompts_whose_last_tokens_may_begin_inside_a_character(self, name, prompt, request):
        tokenizer, grid = request.getfixturevalue(name), NumberGrid(range(12))
        contexts = [Context(start + prompt, " ") for start in ("", "x", "xy ", "評 ")]
        for context, one in zip(contexts, GridResolver(grid, tokenizer).resolve(contexts), strict=True):
            assert [[*one.prompt_ids, *ids] for ids in one.token_ids] == whole_sentences(tokenizer, grid, context)

    def test_a_tail_that_does_not_compare_is_not_used(self, byte_level):
        tokenizer = deepcopy(byte_level)
        tokenizer.add_tokens(["from 0 to 9 this very long and winding item is 7"])
        with pytest.raises(ValueError, match="'7' merges into the end of the prompt"):
            resolve(NumberGrid([7, 8]), tokenizer, "Rate: from 0 to 9 this very long and winding item is")


def digit_groups(pattern):
    """Digits in threes, and the one merge 1 + 2."""
    alphabet = ["<unk>", "<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate([*alphabet, "12"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("1", "2")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return as_hugging_face(tokenizer)


def without_unknown(characters, bos=False):
    vocabulary = {token: index for index, token in enumerate(["<bos>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


def test_digits_grouped_from_the_left():
    tokenizer = digit_groups(r"\p{N}{1,3}")
    prompt = "number 1" + "0" * 14  # 100 000 000 000 000
    resolved = resolve(NumberGrid([5, 12, 34]), tokenizer, prompt, separator="")
    assert [*resolved.prompt_ids, *resolved.token_ids[1]] == tokenizer(prompt + "12").input_ids


def test_digits_grouped_from_the_right():
    tokenizer = digit_groups(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))")
    with pytest.raises(ValueError, match="merges"):  # 12 000 000 becomes 1 200 000 000
        resolve(NumberGrid({0: "000", 1: "00"}), tokenizer, "number 12" + "0" * 18, separator="")


def test_an_added_token_longer_than_the_tail(byte_level):
    tokenizer = deepcopy(byte_level)
    tokenizer.add_tokens(["from 0 to 9 this very long and winding item is 7"])
    prompt = "Rate: from 0 to 9 this very long and winding item is"
    with pytest.raises(ValueError, match="merges"):
        resolve(NumberGrid([8, 7]), tokenizer, prompt)


def test_an_unknown_token_takes_in_a_sign(word_level):
    with pytest.raises(ValueError, match="merges"):  # "([" and "([-" are one unknown token each
        resolve(NumberGrid([-5, 3]), word_level, "score ([", separator="")


@pytest.mark.parametrize("grid", [[1.5, 2.5], [-2, 1]])
def test_characters_left_out(grid):
    with pytest.raises(ValueError, match="no token for the grid text"):  # 1.5 is written 15, -2 is written 2
        resolve(NumberGrid(grid), without_unknown("score i125"), "score is")


def test_leading_tokens_where_there_is_no_token_for_1():
    tokenizer = without_unknown("scoreigdba ", bos=True)
    resolved = resolve(NumberGrid({1: "good", 0: "bad"}), tokenizer, "score is")
    assert [*resolved.prompt_ids, *resolved.token_ids[0]] == tokenizer("score is good").input_ids


def test_an_end_that_is_also_the_unknown_token(smollm2_tokenizer):
    assert smollm2_tokenizer.unk_token == "<|endoftext|>"
    end = NumberEnd.of("<|endoftext|>", smollm2_tokenizer)
    assert resolve(NumberGrid([1, 10]), smollm2_tokenizer, "Score:", number_end=end).token_ids[0] == (33, 0)
