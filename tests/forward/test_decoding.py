import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft_peft import NumberGrid
from raft_peft.forward.decoding import MAX_NEW_TOKENS, generate_texts, numbers_in_texts, parse_number
from raft_peft.grid import number_text

STARS = NumberGrid([1, 2, 3, 4, 5])
MONTHS = NumberGrid({1: "January", 2: "February", 3: "March", 5: "May"})
LETTERS = NumberGrid({1: "A", 2: "AB", 3: "B"})


class TestParseNumber:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("4", 4),
            (" 4", 4),
            ("\n4\n", 4),
            ("4.", 4),
            ("4.5", 4.5),
            (".5", 0.5),
            ("0.25 of it", 0.25),
            ("-3", -3),
            ("−3", -3),  # noqa: RUF001 - the minus sign, which is no hyphen
            ("-.5", -0.5),
            ("+2.5", 2.5),
            ("1,234", 1234),
            ("1,234,567.5", 1234567.5),
            ("-12,000", -12000),
            ("1234567", 1234567),
            ("4/5", 4),
            ("4 out of 5", 4),
            ("4-5", 4),
            ("1,2,3", 1),
            ("1, 2, 3", 1),
            ("7,", 7),
            ("1.2.3", 1.2),
            ("$19.99", 19.99),
            ("80%", 80),
            ("The score is 3.", 3),
            ("stars: 4", 4),
            ("007", 7),
            ("-0", 0),
        ],
    )
    def test_the_first_decimal_number(self, text, number):
        assert parse_number(text, STARS) == number

    @pytest.mark.parametrize("text", ["", "   ", "four", "very good.", "-", "−", "+", ".", ",", "...", "- . ,"])  # noqa: RUF001
    def test_texts_without_a_number(self, text):
        assert parse_number(text, STARS) is None
        assert parse_number(text, LETTERS) is None

    def test_a_number_beyond_all_floats_is_none(self):
        assert parse_number("9" * 400, STARS) is None

    def test_a_number_off_the_grid_is_a_number(self):
        assert parse_number("17.25", STARS) == 17.25

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("A", 1),
            ("AB", 2),  # and not A, with which it begins too
            ("B", 3),
            (" AB\n", 2),
            ("A, because", 1),
            ("AB.", 2),
            ("A B", 1),
            ("A)", 1),
            ("(A", None),
            ("ABC", None),
            ("AC", None),
            ("Absolutely", None),
            ("B2", 2),  # no B, hence the first number
            ("a", None),
            ("The answer is A", None),
            ("3", 3),
        ],
    )
    def test_letters_of_which_one_begins_another(self, text, number):
        assert parse_number(text, LETTERS) == number

    def test_the_order_of_the_grid_does_not_matter(self):
        turned = NumberGrid({3: "B", 2: "AB", 1: "A"})
        assert [parse_number(text, turned) for text in ("A", "AB", "B", "ABC")] == [1, 2, 3, None]

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("March", 3),
            (" May 2024", 5),  # the month and not the year
            ("January.", 1),
            ("Mayor", None),
            ("Marching", None),
            ("Mayor of 3 towns", 3),
            ("in May", None),
        ],
    )
    def test_months(self, text, number):
        assert parse_number(text, MONTHS) == number

    def test_words_of_which_one_begins_another(self):
        words = NumberGrid({1: "good", 2: "good enough", 0: "bad"})
        texts = ("good enough", "good", "good, but", "Good", "bad")
        assert [parse_number(text, words) for text in texts] == [2, 1, 1, None, 0]

    def test_digits_that_mean_another_number(self):
        reversed_digits = NumberGrid({12: "21", 21: "12", 1: "10"})
        assert [parse_number(text, reversed_digits) for text in ("21", "12 of 30", "10", "100")] == [12, 21, 1, 100]

    def test_spaces_of_the_grids_own_texts(self):
        assert parse_number("B.", NumberGrid({1: " A", 2: " B"})) == 2

    @given(st.floats(-1e6, 1e6), st.sampled_from(["", " ", ".", " points", "/5", ", 3", "\n7"]))
    def test_the_text_of_a_number_reads_back(self, value, rest):
        text = number_text(value)
        assert parse_number(" " + text + rest, STARS) == float(text)

    @given(st.integers(-(10**9), 10**9))
    def test_thousands_separators_read_back(self, value):
        assert parse_number(f"{value:,} people", STARS) == value


def test_numbers_in_texts():
    texts = [["4", "no idea", "5 stars"], ["2", "2.5", "-1"], ["none", "", "?"]]
    numbers, shares = numbers_in_texts(texts, STARS)
    # (4 + 0 + 5) / 3 with two of three, (2 + 2.5 - 1) / 3 with all, and 0 with none
    torch.testing.assert_close(numbers, torch.tensor([3, 3.5 / 3, 0]))
    torch.testing.assert_close(shares, torch.tensor([2 / 3, 1, 0]))
    assert numbers.dtype == shares.dtype == torch.float32


def test_a_text_that_says_zero_is_parsed():
    numbers, shares = numbers_in_texts([["0"], ["nothing"]], STARS)
    assert (numbers.tolist(), shares.tolist()) == ([0, 0], [1, 0])


def test_texts_of_the_grid_are_counted_as_its_values():
    numbers, shares = numbers_in_texts([["A", "AB, I think", "ABC", "B"]], LETTERS)
    assert (numbers.tolist(), shares.tolist()) == ([(1 + 2 + 0 + 3) / 4], [0.75])


# What published models have in their generation_config.json.
HABITS = [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"num_beams": 4}]
PROMPTS = ["the score is", "a", "Rate the item 27 from 0 to 9:", "item 3"]


def padded(tokenizer, prompts):
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    assert batch.attention_mask.sum(1).unique().numel() > 1
    return batch.input_ids, batch.attention_mask


def by_hand(model, tokenizer, prompt, ends=(2,)):
    """The tokens behind one prompt alone: the most likely one, again and again, over the whole sequence each time."""
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + MAX_NEW_TOKENS and not (len(ids) > start and ids[-1] in ends):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[start:]


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


class TestGreedy:
    @pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma2"])
    def test_equals_a_loop_over_each_row_alone(self, name, tokenizer, request):
        model = request.getfixturevalue(name)
        expected = [[text_of(tokenizer, by_hand(model, tokenizer, prompt))] for prompt in PROMPTS]
        assert generate_texts(model, tokenizer, *padded(tokenizer, PROMPTS)) == expected
        assert len({text for (text,) in expected}) == len(PROMPTS)

    def test_each_row_ends_where_it_ends(self, tiny_llama, tokenizer):
        """The third token of the first prompt ends a text, while the other rows go on."""
        end = by_hand(tiny_llama, tokenizer, PROMPTS[0])[2]
        tiny_llama.generation_config.eos_token_id = [2, end]
        tokens = [by_hand(tiny_llama, tokenizer, prompt, ends=(2, end)) for prompt in PROMPTS]
        assert len(tokens[0]) < max(len(row) for row in tokens)
        expected = [[text_of(tokenizer, row)] for row in tokens]
        assert generate_texts(tiny_llama, tokenizer, *padded(tokenizer, PROMPTS)) == expected

    def test_the_tokenizers_end_token_where_the_model_names_none(self, tiny_llama, tokenizer):
        end = by_hand(tiny_llama, tokenizer, PROMPTS[0])[0]
        tiny_llama.generation_config.eos_token_id = None
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        expected = [[text_of(tokenizer, by_hand(tiny_llama, tokenizer, prompt, ends=(end,)))] for prompt in PROMPTS]
        assert generate_texts(tiny_llama, tokenizer, *padded(tokenizer, PROMPTS)) == expected
        assert expected[0] == [tokenizer.decode([end])]

    @pytest.mark.parametrize("habit", HABITS, ids=str)
    def test_habits_that_the_model_brings_along_are_left_out(self, habit, tiny_llama, tokenizer):
        expected = [[text_of(tokenizer, by_hand(tiny_llama, tokenizer, prompt))] for prompt in PROMPTS]
        tiny_llama.generation_config.update(**habit)
        assert generate_texts(tiny_llama, tokenizer, *padded(tokenizer, PROMPTS)) == expected

    def test_no_gradients(self, tiny_llama, tokenizer):
        seen = []
        tiny_llama.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
        generate_texts(tiny_llama, tokenizer, *padded(tokenizer, PROMPTS))
        assert not any(seen)
        assert 1 <= len(seen) <= MAX_NEW_TOKENS


class TestSampling:
    def test_every_prompt_has_its_own_samples(self, tiny_llama, tokenizer):
        """A model that is sure of every token, so that each sample is the greedy text of its own prompt."""
        tiny_llama.lm_head.weight.data *= 1000
        expected = [[text_of(tokenizer, by_hand(tiny_llama, tokenizer, prompt))] * 3 for prompt in PROMPTS]
        torch.manual_seed(0)
        assert generate_texts(tiny_llama, tokenizer, *padded(tokenizer, PROMPTS), num_samples=3) == expected

    def test_one_sample_is_no_greedy_text(self, tiny_llama, tokenizer):
        tiny_llama.lm_head.weight.data *= 0  # every token as likely as any other
        torch.manual_seed(0)
        (text,), (other,), *_ = generate_texts(
            tiny_llama, tokenizer, *padded(tokenizer, ["the score is"] * 2 + ["a"]), num_samples=1
        )
        assert text != other

    @pytest.mark.parametrize(
        "habit",
        [
            {"temperature": 0.3, "top_k": 2, "top_p": 0.5},
            {"min_p": 0.5},
        ],
        ids=str,
    )
    def test_first_tokens_at_temperature_one(self, habit, tiny_llama, tokenizer):
        """Not as the model brings along."""
        model, prompts, draws = tiny_llama, PROMPTS[:2], 1000
        model.lm_head.weight.data *= 0.5
        model.generation_config.update(do_sample=True, **habit)
        model.generation_config.eos_token_id = list(range(len(tokenizer)))  # one token ends every text
        torch.manual_seed(0)
        drawn = generate_texts(model, tokenizer, *padded(tokenizer, prompts), num_samples=draws)
        texts = [text_of(tokenizer, [token]) for token in range(len(tokenizer))]
        for prompt, row in zip(prompts, drawn, strict=True):
            with torch.no_grad():
                p = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1].double().softmax(-1).numpy()
            assert len(row) == draws
            assert set(row) <= set(texts)
            assert p.max() < 0.5
            for text in set(texts):
                expected = sum(p[token] for token, other in enumerate(texts) if other == text)
                error = abs(row.count(text) / draws - expected)
                assert error < 5 * np.sqrt(expected * (1 - expected) / draws) + 2 / draws


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,2345", 1.0), ("top-10", 10.0), ("GPT-4: 3", 4.0), ("4-5", 4.0), ("is -3", -3.0), ("1,234,567.5", 1234567.5)],
)
def test_commas_and_hyphens(text, number):
    assert parse_number(text, NumberGrid([1, 5])) == number


def test_a_grid_text_that_goes_on_as_a_number_is_another_number():
    grid = NumberGrid({1: "1", 2: "2", 0.5: "half"})
    assert parse_number("1.5", grid) == 1.5
    assert parse_number("1. Because", grid) == 1
    assert parse_number("half", grid) == 0.5


def test_the_end_token_of_the_tokenizer_ends_a_text_too(tiny_llama, tokenizer):
    """The model names another end token than the tokenizer; both end the text."""
    tiny_llama.generation_config.eos_token_id = 3
    says = iter([10, tokenizer.eos_token_id, 11, 12, 13, 14, 15, 16])
    tiny_llama.lm_head.register_forward_hook(
        lambda module, inputs, logits: torch.nn.functional.one_hot(
            torch.tensor([[next(says)]]), logits.shape[-1]
        ).float()
    )
    batch = tokenizer(PROMPTS[:1], return_tensors="pt")
    texts = generate_texts(tiny_llama, tokenizer, batch.input_ids, batch.attention_mask)
    assert texts == [[tokenizer.decode([10])]]
    assert tiny_llama.generation_config.eos_token_id == 3
