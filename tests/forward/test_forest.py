"""Prompts that share beginnings against each prompt by itself, with the model's plain forward."""

import numpy as np
import pytest
import torch
from support.decoders import FAMILIES, GRIDS, VOCABULARY, alone, make, real_tokens

from raft_peft.forward.attention import take_flat_sequences
from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.forest import apart, common_prefix, group_prompts
from raft_peft.forward.layouts import flat_sequences, grouped_sequences, groups_of, padded_sequences
from raft_peft.forward.prefix_cache import PrefixCache
from raft_peft.grid.trie import Trie


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3]], [1, 2]),  # the last token of the shortest is left to be run
        ([[1, 2, 3], [1, 4, 3], [1, 2, 3]], [1]),
        ([[1, 2], [3, 4]], []),
        ([[1, 2, 3], [1, 2, 3]], [1, 2]),
        ([[1]], []),
    ],
)
def test_common_prefix(prompts, expected):
    assert common_prefix(prompts) == expected


def tokens(count, seed):
    return torch.randint(10, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch(prompts):
    """Prompts padded on the left."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    return ids, torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def questions_about_states(states=(9, 1, 6), questions=(1, 3, 4)):
    """A template, states behind it, and questions behind each; one question goes on from another, one comes twice."""
    asked = [
        tokens(3, 0) + tokens(length, 1 + state) + tokens(count, 50 + count)
        for state, length in enumerate(states)
        for count in questions
    ]
    asked += [[*asked[0], 7, 8], asked[-1]]
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0))
    return [asked[index] for index in order]


def distinct(prompts):
    """The tokens of the prompts that are not the same token behind the same tokens; each last one counts."""
    return len({tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt))}) + len(prompts)


class TestGroups:
    def test_by_hand(self):
        prompts = [np.array(prompt) for prompt in ([1, 2, 3, 4], [9, 9], [1, 2, 5], [1, 2, 3, 6, 7])]
        # In order: 1 2 3 4; 1 2 3 6 7 (shares 3); 1 2 5 (shares 2); 9 9 (shares 0). Those that share 2 are rows of 7
        # and 2: 9 tokens and 2 * 7 * 7 pairs. Those that share 3, rows of 6, 3, 2: 11 tokens and 3 * 6 * 6 pairs.
        # Apart: 14 tokens and 4 * 5 * 5 pairs.
        groups = group_prompts(prompts, prefix=0, token_cost=5, padding="attention")
        assert groups.order.tolist() == [0, 3, 2, 1]
        assert groups.shared.tolist() == [0, 3, 2, 0]
        assert [group.tolist() for group in groups] == [[0, 1, 2], [3]]

    @pytest.mark.parametrize(
        # Together 5 tokens and 5 * (5 + prefix) pairs, apart 6 tokens and 2 * 3 * (3 + prefix) pairs.
        ("token_cost", "prefix", "share"),
        [(6, 0, False), (12, 0, True), (12, 2, True), (4, 2, False)],
    )
    def test_share_where_it_costs_a_twentieth_less(self, token_cost, prefix, share):
        prompts = [np.array([1, 2, 3]), np.array([1, 4, 5])]
        assert group_prompts(prompts, prefix=prefix, token_cost=token_cost, padding="attention").share == share

    def test_equal_prompts_keep_their_last_tokens(self):
        prompts = [np.array([5, 6, 7])] * 3
        groups = group_prompts(prompts, prefix=0, token_cost=1000)
        assert groups.shared.tolist() == [0, 2, 2]

    @pytest.mark.parametrize(
        # Two prompts of 3 tokens that share 1, one of 8: rows of 5 and 8, or 3, 3, 8.
        ("padding", "share"),
        [
            ("nothing", False),  # 13 * 6 + 25 + 64 = 167, and 14 * 6 + 9 + 9 + 64 = 166
            ("attention", True),  # 13 * 6 + 2 * 64 = 206, and 14 * 6 + 3 * 64 = 276
            ("rows", True),  # 16 * 6 + 2 * 64 = 224, and 24 * 6 + 3 * 64 = 336
        ],
    )
    def test_what_is_padded_costs(self, padding, share):
        prompts = [np.array([1, 2, 3]), np.array([1, 4, 5]), np.arange(10, 18)]
        assert group_prompts(prompts, prefix=0, token_cost=6, padding=padding).share == share

    def test_a_long_row_is_not_made_for_a_few_tokens(self):
        """Two long prompts that share their first token by chance stay apart."""
        prompts = [np.array([1, *range(100 + 300 * index, 400 + 300 * index)]) for index in range(2)]
        assert not group_prompts(prompts, prefix=0, token_cost=192).share


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_equal_each_prompt_by_itself(family, attention):
    model = make(family)
    model.set_attn_implementation(attention)
    ids, mask = batch(questions_about_states())
    # Behind all of the template and part of it, and behind nothing.
    caches = [PrefixCache(model, real_tokens(ids, mask)[0][:length]).layout for length in (3, 2)]
    for grid in (GRIDS["prefixes of prefixes"], None):
        trie = None if grid is None else Trie.of([grid] * len(ids))
        numbers = tuple((token,) for token in range(VOCABULARY)) if grid is None else grid
        expected = torch.stack([alone(model, prompt, numbers) for prompt in real_tokens(ids, mask)])
        assert groups_of(model, ids, mask, trie=trie).share
        for layout in (grouped_sequences, *caches, flat_sequences):
            if layout is flat_sequences:
                take_flat_sequences(model.config)
            with torch.no_grad():
                final = read_final_position(model, ids, mask, trie, layout=layout)
            found = final.logits.double().log_softmax(-1) if final.trie is None else final.trie.log_probs.double()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        model.config._attn_implementation = attention


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("states", "questions"), [((9, 1, 6), (1, 3, 4)), ((100,), range(1, 21)), ((1000,), (5,))])
def test_states_and_gradients_equal_those_of_padded_rows(states, questions, side):
    ids, mask = batch(questions_about_states(states, questions))
    if side == "right":
        order = mask.argsort(dim=1, descending=True, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    results = []
    for layout in (padded_sequences, flat_sequences):
        model = make("gemma2" if len(questions) < 20 else "mistral")
        take_flat_sequences(model.config)
        final = read_final_position(model, ids, mask, layout=layout, hidden_states=True)
        states = final.hidden_states.masked_fill(~final.attention_mask.bool().unsqueeze(-1), 0)
        (final.logits.log_softmax(-1)[:, 7].mean() + states.square().mean()).backward()
        results.append([final.logits, states, *(parameter.grad for parameter in model.parameters())])
    (logits, hidden, *gradients), (flat_logits, flat_hidden, *flat_gradients) = results
    torch.testing.assert_close(flat_logits, logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(flat_hidden, hidden, rtol=0, atol=1e-4)
    for gradient, flat_gradient in zip(gradients, flat_gradients, strict=True):
        torch.testing.assert_close(flat_gradient, gradient, rtol=1e-5, atol=1e-5)


def test_each_token_that_is_shared_is_computed_once():
    model = make("llama")
    take_flat_sequences(model.config)
    prompts = questions_about_states((200, 150, 170), (20, 30, 31))
    ids, mask = batch(prompts)
    assert flat_sequences(model, ids, mask, None).input_ids.shape[1] == distinct(prompts)


def test_prompts_apart_stay_in_their_order():
    assert apart(3).order.tolist() == [0, 1, 2]
    assert [group.tolist() for group in apart(3)] == [[0], [1], [2]]
