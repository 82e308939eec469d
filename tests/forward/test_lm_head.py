"""The product of few positions by the output matrix: the numbers and gradients of the head's own forward."""

import pytest
import torch

from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.lm_head import logits_of_few_positions

HIDDEN = 12


def product(head, states, autocast=False):
    """The logits, and the gradient of the states, as logits_of_few_positions computes them."""
    states = states.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = logits_of_few_positions(head, states)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), states.grad


def by_hand(head, states):
    """The same in float64."""
    weight = head.weight.detach().double()
    logits = torch.einsum("bch,vh->bcv", states.double(), weight)
    scale = torch.linspace(-1, 1, logits.numel()).view_as(logits).double()
    return logits, torch.einsum("bcv,vh->bch", scale, weight)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("vocabulary", [128, 50])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("trained", [False, True])
def test_float32_weights_are_multiplied_in_float32_whatever_the_autocast(trained, shape, vocabulary, autocast):
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, vocabulary, bias=False).requires_grad_(trained)
    states = torch.randn(*shape, HIDDEN)
    logits, gradient = product(head, states, autocast)
    assert logits.dtype == torch.float32
    for found, expected in zip((logits, gradient), by_hand(head, states), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (head.weight.grad is not None) == trained


def test_a_bias_is_added():
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, 128).requires_grad_(False)
    states = torch.randn(3, 1, HIDDEN)
    torch.testing.assert_close(product(head, states)[0], head(states))


def test_predictions_under_bf16_autocast_are_not_rounded(tiny_llama):
    ids, mask = torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.long)
    states = []
    tiny_llama.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = read_final_position(tiny_llama, ids, mask).logits
    expected = states[0][0].double() @ tiny_llama.lm_head.weight.double().t()
    torch.testing.assert_close(logits.double(), expected, atol=1e-6, rtol=1e-6)
