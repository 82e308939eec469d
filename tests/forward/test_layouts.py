"""A trie read in one forward pass against every number scored by itself, with the model's plain forward."""

from functools import partial

import pytest
import torch
from support.decoders import FAMILIES, GRIDS, VOCABULARY, WINDOW, WITHOUT_TREES, alone, make, real_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconConfig, FalconForCausalLM

from raft_peft import NumberGrid
from raft_peft.forward.attention import leave_flat_sequences, take_flat_sequences
from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.layout_choice import why_not_a_tree, why_not_flat
from raft_peft.forward.layouts import flat_sequences, padded_sequences, path_sequences, tree_sequences
from raft_peft.grid.resolution import resolve
from raft_peft.grid.trie import Trie


def prompts(padding):
    """Three prompts of 14, 13 and 9 tokens, or all of 14."""
    ids = torch.randint(10, VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, count in ((1, 1), (2, 5)):
        if padding == "left":
            mask[row, :count] = 0
        elif padding == "right":
            mask[row, -count:] = 0
    return ids.masked_fill(mask == 0, 0), mask


def read(model, ids, mask, grid, layout=tree_sequences, **options):
    trie = Trie.of([grid] * len(ids))
    return read_final_position(model, ids, mask, trie, layout=layout, **options).trie.log_probs


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("padding", ["left", "right", "none"])
@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_equals_each_number_by_itself(family, attention, padding, grid):
    model = make(family)
    model.set_attn_implementation(attention)
    assert why_not_a_tree(model) is None
    ids, mask = prompts(padding)
    expected = torch.stack([alone(model, prompt, grid) for prompt in real_tokens(ids, mask)])
    with torch.no_grad():
        for options in ({}, {"max_nodes": 1}, {"layout": path_sequences}, {"layout": flat_sequences}):
            if options.get("layout") is flat_sequences:
                take_flat_sequences(model.config)
                assert why_not_flat(model) is None
            found = read(model, ids, mask, grid, **options)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", WITHOUT_TREES)
def test_what_takes_no_tree_is_found_out_and_scored_exactly(family):
    model = make(family)
    assert why_not_a_tree(model) is not None
    ids, mask = prompts("left")
    for grid in GRIDS.values():
        expected = torch.stack([alone(model, prompt, grid) for prompt in real_tokens(ids, mask)])
        with torch.no_grad():
            found = read(model, ids, mask, grid, path_sequences)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_the_trial_leaves_the_model_as_it_was():
    model = make("gemma2").train()
    assert why_not_a_tree(model) is None
    assert model.training
    assert model.config.sliding_window == WINDOW


def test_a_model_whose_mask_means_something_else_is_found_out():
    model = make("llama")
    forward = model.forward
    model.forward = lambda attention_mask, **inputs: forward(attention_mask=None, **inputs)
    model.forward.__signature__ = None
    assert why_not_a_tree(model) is not None


def test_gradients_equal_those_of_the_paths():
    ids, mask = prompts("left")
    gradients = []
    for layout in (tree_sequences, flat_sequences, path_sequences):
        model = make("gemma2")
        if layout is flat_sequences:
            take_flat_sequences(model.config)
        read(model, ids, mask, GRIDS["prefixes of prefixes"], layout).exp().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for tree, flat, paths in zip(*gradients, strict=True):
        torch.testing.assert_close(tree, paths, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flat, paths, rtol=1e-4, atol=1e-5)


def test_one_forward_pass_and_no_logits_of_the_prompt():
    model, calls = make("llama"), []
    model.register_forward_hook(lambda _module, _arguments, outputs: calls.append(outputs.logits.shape))
    ids, mask = prompts("left")
    read(model, ids, mask, GRIDS["one or two tokens"])
    assert calls == [(3, 1 + 2, VOCABULARY)]  # the prompt's end, and two inner nodes


def test_bidirectional_prompts_see_no_number():
    """The prompt's tokens attend to each other; what stands behind them cannot change them."""
    model = make("llama")
    ids, mask = prompts("left")
    options = {"layout": partial(tree_sequences, bidirectional=True)}
    with torch.no_grad():
        few = read(model, ids, mask, ((3, 4), (5,)), **options)
        more = read(model, ids, mask, ((3, 4), (5,), (6, 7), (8, 9)), **options)
        causal = read(model, ids, mask, ((3, 4), (5,)))
    torch.testing.assert_close(few, more[:, :2])
    assert (few - causal).abs().max() > 1e-2


# Numbers of one to four tokens; few of them, since each is run by itself.
REAL_GRIDS = {
    "up to 100": NumberGrid([*range(12), 99, 100]),
    "tenths": NumberGrid.spaced(1, 2, 0.1),
    "mixed": NumberGrid([-3, 0.5, 1, 10, 100]),
}


@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_real_models(name, request):
    folder = request.getfixturevalue(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert why_not_a_tree(model) is None
    texts = ["Rate the soup from 0 to 5. The score is", "On a scale from 0 to 100 the long and winding road gets:"]
    for grid in REAL_GRIDS.values():
        resolved = [resolve(grid, tokenizer, text) for text in texts]
        token_ids = resolved[0].token_ids
        assert resolved[1].token_ids == token_ids
        length = max(len(one.prompt_ids) for one in resolved)
        ids = torch.tensor([[0] * (length - len(one.prompt_ids)) + list(one.prompt_ids) for one in resolved])
        mask = torch.tensor([[0] * (length - len(one.prompt_ids)) + [1] * len(one.prompt_ids) for one in resolved])
        with torch.no_grad():
            found = read(model, ids, mask, token_ids)
        expected = torch.stack([alone(model, one.prompt_ids, token_ids) for one in resolved])
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def prompts_with_a_prefix(shared=5):
    """Three prompts of 14, 12 and 8 tokens, padded on the left, that begin with the same five tokens."""
    ids = torch.randint(10, VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, padding in ((1, 2), (2, 6)):
        mask[row, :padding] = 0
        ids[row, padding : padding + shared] = ids[0, :shared]
    return ids.masked_fill(mask == 0, 0), mask


class TestFlatRows:
    @pytest.mark.parametrize(("family", "attention"), FAMILIES)
    def test_with_a_common_beginning_equal_each_number_by_itself(self, family, attention):
        model = make(family)
        model.set_attn_implementation(attention)
        take_flat_sequences(model.config)
        ids, mask = prompts_with_a_prefix()
        for grid in GRIDS.values():
            expected = torch.stack([alone(model, prompt, grid) for prompt in real_tokens(ids, mask)])
            with torch.no_grad():
                found = read(model, ids, mask, grid, flat_sequences)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("make_prompts", [prompts_with_a_prefix, lambda: prompts("left"), lambda: prompts("none")])
    def test_final_position_and_gradients_equal_those_of_padded_rows(self, make_prompts):
        ids, mask = make_prompts()
        results = []
        for layout in (padded_sequences, flat_sequences):
            model = make("gemma2")
            take_flat_sequences(model.config)
            final = read_final_position(model, ids, mask, layout=layout, hidden_states=True)
            states = final.hidden_states.masked_fill(~mask.bool().unsqueeze(-1), 0)
            (final.logits.log_softmax(-1)[:, 7].sum() + states.square().mean()).backward()
            results.append([final.logits, states, *(parameter.grad for parameter in model.parameters())])
        for padded, flat in zip(*results, strict=True):
            torch.testing.assert_close(flat, padded, rtol=1e-4, atol=1e-5)

    def test_hold_each_token_once_and_the_common_beginning_once(self):
        model = make("llama")
        take_flat_sequences(model.config)
        ids, mask = prompts_with_a_prefix()
        rows = flat_sequences(model, ids, mask, None)
        assert rows.input_ids.shape == (1, 5 + 9 + 7 + 3)
        assert rows.position_ids[0].tolist() == [*range(5), *range(5, 14), *range(5, 12), *range(5, 8)]

    def test_a_row_that_is_all_common_keeps_its_last_token(self):
        model = make("llama")
        take_flat_sequences(model.config)
        ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
        rows = flat_sequences(model, ids, torch.ones_like(ids), None)
        assert rows.input_ids.tolist() == [[5, 6, 7, 7]]
        with torch.no_grad():
            final = read_final_position(model, ids, torch.ones_like(ids), layout=flat_sequences).logits
            torch.testing.assert_close(final, model(ids).logits[:, -1], rtol=1e-4, atol=1e-5)

    def test_bidirectional_rows_have_nothing_in_common(self):
        model = make("llama")
        ids, mask = prompts_with_a_prefix()
        read_off = []
        for layout in (flat_sequences, tree_sequences):
            take_flat_sequences(model.config)
            with torch.no_grad():
                read_off.append(read(model, ids, mask, GRIDS["none a prefix"], partial(layout, bidirectional=True)))
        torch.testing.assert_close(*read_off, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("family", WITHOUT_TREES)
    def test_what_cannot_take_them_is_found_out(self, family):
        model = make(family)
        take_flat_sequences(model.config)
        assert why_not_flat(model) is not None

    def test_a_model_that_asks_for_its_attention_by_name_keeps_its_numbers(self):
        torch.manual_seed(0)
        model = FalconForCausalLM(
            FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        ).eval()
        ids, mask = prompts("left")
        before = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        take_flat_sequences(model.config)
        if why_not_flat(model) is not None:
            leave_flat_sequences(model.config)
        after = read_final_position(model, ids, mask).logits
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)

    def test_autocast_does_not_spoil_the_trial(self):
        model = make("llama")
        take_flat_sequences(model.config)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert why_not_flat(model) is None
            assert why_not_a_tree(model) is None

    def test_everything_else_goes_on_as_before(self):
        """Generation and plain forwards of a model whose attention takes flat rows, too."""
        model = make("gemma2")
        ids, mask = prompts("left")
        before = model(input_ids=ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask)
        take_flat_sequences(model.config)
        after = model(input_ids=ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask)
        torch.testing.assert_close(after[0], before[0])
        assert torch.equal(after[1], before[1])
