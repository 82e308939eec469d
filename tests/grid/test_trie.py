"""The trie against arithmetic by hand, and against a walk from token to token in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_peft.grid.trie import NO_NODE, Trie, is_deep

VOCABULARY = 4
numbers = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4).map(tuple)
grids = st.lists(numbers, min_size=2, max_size=12, unique=True).map(tuple)


def beginnings(trie, row=0):
    """The tokens that lead to each node of a row, rebuilt from the trie's own description."""
    on_path = trie.ancestors[row]
    return [
        (),
        *(tuple(trie.node_ids[row][on_path[node].nonzero().flatten()].tolist()) for node in range(trie.size)),
    ]


def walk(grid, logits, beginning_of_node):
    """log p of each number from token to token, in float64."""
    following = {beginning: logits[node].double().log_softmax(-1) for node, beginning in enumerate(beginning_of_node)}
    result = []
    for number in grid:
        total = sum(following[number[:index]][token] for index, token in enumerate(number))
        goes_on = {other[len(number)] for other in grid if other[: len(number)] == number != other}
        if goes_on:
            stops = [token for token in range(logits.shape[-1]) if token not in goes_on]
            total = total + (following[number][stops].logsumexp(0) if stops else -math.inf)
        result.append(total)
    return torch.stack(result)


def random_logits(trie, seed=0, rows=1):
    return 2 * torch.randn(rows, 1 + trie.size, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    """1, 10 and 2, with p(1) = 0.5 and p(2) = 0.3 at first, and p(0) = 0.4 after the 1."""
    trie = Trie.of([((1,), (1, 0), (2,))])
    logits = torch.tensor([[[0.1, 0.5, 0.3, 0.1], [0.4, 0.2, 0.2, 0.2]]]).log()
    # 0.5 x (1 - 0.4) = 0.3; 0.5 x 0.4 = 0.2; 0.3
    torch.testing.assert_close(trie.log_probs(logits).exp(), torch.tensor([[0.3, 0.2, 0.3]]))
    # At first only 1 and 2 are left, 0.5 and 0.3 of 0.8; after the 1, 0.4 to go on and 0.6 to stop.
    torch.testing.assert_close(
        trie.constrained_log_probs(logits).exp(), torch.tensor([[0.625 * 0.6, 0.625 * 0.4, 0.375]])
    )
    # Greedily 1, and then 0 (0.4), since no other token alone is more likely.
    assert trie.greedy_misses(logits).tolist() == [[1, 0, 1]]


@given(grids, st.integers(0, 9))
def test_equals_a_walk_from_token_to_token(grid, seed):
    trie = Trie.of([grid])
    logits = random_logits(trie, seed)
    log_probs = trie.log_probs(logits)[0]
    torch.testing.assert_close(log_probs.double(), walk(grid, logits[0], beginnings(trie)), rtol=1e-5, atol=1e-5)
    assert log_probs.exp().sum() <= 1 + 1e-5


@given(st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_grid_of_all_strings_sums_to_one(vocabulary, length, with_prefixes):
    lengths = range(1, length + 1) if with_prefixes else [length]
    grid = tuple(number for size in lengths for number in itertools.product(range(vocabulary), repeat=size))
    trie = Trie.of([grid])
    logits = torch.randn(1, 1 + trie.size, vocabulary, requires_grad=True)
    log_probs = trie.log_probs(logits)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    log_probs.exp().matmul(torch.arange(float(len(grid)))).sum().backward()
    assert logits.grad.isfinite().all()


@given(grids, st.integers(0, 9))
def test_gradients_equal_those_of_the_walk(grid, seed):
    trie = Trie.of([grid])
    logits = random_logits(trie, seed).requires_grad_()
    values = torch.arange(1.0, 1 + len(grid))
    (gradient,) = torch.autograd.grad((trie.log_probs(logits).exp() * values).sum(), logits)
    (expected,) = torch.autograd.grad((walk(grid, logits[0], beginnings(trie)).exp() * values).sum(), logits)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-5)


@given(grids, st.integers(0, 9))
def test_decoding_within_the_grid(grid, seed):
    """Sampling sums to one, and greedy decoding finds the one number that a walk finds."""
    trie = Trie.of([grid])
    logits = random_logits(trie, seed)
    node_of = {beginning: node for node, beginning in enumerate(beginnings(trie))}
    constrained = trie.constrained_log_probs(logits)[0]
    assert constrained.exp().sum().item() == pytest.approx(1, abs=1e-5)

    expected = dict.fromkeys(grid, 1.0)
    for number in grid:
        for length in range(len(number) + 1):
            children = {other[length] for other in grid if len(other) > length and other[:length] == number[:length]}
            if not children:
                continue
            p = logits[0, node_of[number[:length]]].double().softmax(-1)
            inside = p[list(children)].sum()
            allowed = 1.0 if number[:length] in grid else inside
            expected[number] *= (1 - inside if length == len(number) else p[number[length]]) / allowed
    torch.testing.assert_close(
        constrained.exp().double(), torch.tensor(list(expected.values())).double(), rtol=1e-4, atol=1e-6
    )

    number: tuple[int, ...] = ()
    while children := {other[len(number)] for other in grid if other[: len(number)] == number != other}:
        at_node = logits[0, node_of[number]]
        best = at_node.argmax().item()
        if number in grid and best not in children:
            break
        number += (max(children, key=lambda token: at_node[token].item()),)
    assert [grid[index] for index in (trie.greedy_misses(logits)[0] == 0).nonzero().flatten()] == [number]


@settings(max_examples=30)
@given(st.lists(grids, min_size=1, max_size=3), st.integers(1, 5))
def test_parts_add_up_to_the_whole(rows, size):
    rows = [row[: min(map(len, rows))] for row in rows]
    trie = Trie.of(rows)
    logits = random_logits(trie, rows=len(rows))
    whole = trie.read(logits, constrained=True)
    total = None
    for first in range(0, 1 + trie.size, size):
        part = trie.chunk(first, first + size)
        kept = [0]
        for node in range(1, 1 + trie.size):
            is_own = first <= node < first + size
            is_before = 0 < first <= trie.size and bool(trie.ancestors[:, first - 1, node - 1].any())
            if is_own or is_before:
                kept.append(node)
        assert part.size == len(kept) - 1 <= size + 2 * 4 * len(rows)
        total = part.read(logits[:, kept], constrained=True) + total
    torch.testing.assert_close(total.log_probs, whole.log_probs)
    torch.testing.assert_close(total.constrained_log_probs, whole.constrained_log_probs)
    assert torch.equal(total.greedy_misses, whole.greedy_misses)


def test_rows_of_different_tries():
    rows = [((1,), (1, 0), (2,)), ((1,), (2,), (3,)), ((0, 1, 2), (0, 1, 3), (3,))]
    trie = Trie.of(rows)
    logits = random_logits(trie, rows=3)
    for index, row in enumerate(rows):
        alone = Trie.of([row])
        expected = alone.log_probs(logits[index : index + 1, : 1 + alone.size])
        torch.testing.assert_close(trie.log_probs(logits)[index], expected[0])


def test_a_number_that_nearly_always_goes_on_keeps_its_digits():
    trie = Trie.of([((0,), (0, 1))])
    logits = torch.zeros(1, 2, VOCABULARY)
    logits[0, 1, 1] = 40.0
    expected = math.log(1 / 4) + math.log(3) - 40  # three tokens to stop, beside one of e^40
    assert trie.log_probs(logits)[0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_low_precision_logits_are_read_in_float32():
    trie = Trie.of([((0,), (0, 1), (2, 3))])
    logits = random_logits(trie).bfloat16()
    torch.testing.assert_close(trie.log_probs(logits), trie.log_probs(logits.float()))


def test_paths_lead_to_each_last_inner_node():
    trie = Trie.of([((0,), (0, 1), (0, 1, 2), (2, 3)), ((0,), (1,), (2,), (3,))])
    assert trie.paths().tolist() == [[[1, 2], [3, NO_NODE]], [[NO_NODE, NO_NODE], [NO_NODE, NO_NODE]]]


def test_travels_with_a_batch():
    trie = Trie.of([((0,), (0, 1))] * 2)
    batch = trie.as_batch()
    assert all(tensor.shape[0] == 2 for tensor in batch.values())
    assert torch.equal(Trie.in_batch(batch).nodes, trie.nodes)
    assert Trie.in_batch({"grid_token_ids": torch.zeros(2, 2)}) is None


def test_deep_is_what_has_more_than_one_token():
    assert is_deep(((0,), (0, 1)))
    assert not is_deep(((0,), (1,)))
