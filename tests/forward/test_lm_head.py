"""The product of few rows by the output matrix: in every form the same numbers and gradients."""

import pytest
import torch

from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.lm_head import forward_of_few_rows

HIDDEN = 12


def product(head, rows):
    """Of a head and rows, and the gradient of the rows, as forward_of_few_rows computes them."""
    rows = rows.clone().requires_grad_()
    logits = forward_of_few_rows(head, head.forward, rows)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), rows.grad


def by_hand(head, rows):
    """The same in float64."""
    weight = head.weight.detach().double()
    logits = torch.einsum("bch,vh->bcv", rows.double(), weight)
    scale = torch.linspace(-1, 1, logits.numel()).view_as(logits).double()
    return logits, torch.einsum("bcv,vh->bch", scale, weight)


@pytest.mark.parametrize("vocabulary", [128, 50])  # in parts, and not divisible into them
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("trained", [False, True])
def test_in_float32(trained, shape, vocabulary):
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, vocabulary, bias=False).requires_grad_(trained)
    rows = torch.randn(*shape, HIDDEN)
    logits, gradient = product(head, rows)
    expected_logits, expected_gradient = by_hand(head, rows)
    torch.testing.assert_close(logits.double(), expected_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=1e-5, rtol=1e-5)
    assert (head.weight.grad is not None) == trained


@pytest.mark.parametrize("instructions", ["AVX512-BF16", "AMX", None])
@pytest.mark.parametrize("vocabulary", [128, 50])
@pytest.mark.parametrize("trained", [False, True])
def test_under_bf16_autocast_to_its_digits(trained, vocabulary, instructions, monkeypatch):
    monkeypatch.setattr("raft_peft.forward.lm_head.bf16_instructions", lambda: instructions)
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, vocabulary, bias=False).requires_grad_(trained)
    rows = torch.randn(5, 1, HIDDEN)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, gradient = product(head, rows)
    assert logits.dtype == torch.float32
    for found, expected in zip((logits, gradient), by_hand(head, rows), strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()
    assert (head.weight.grad is not None) == trained
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_bias_is_added():
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, 128).requires_grad_(False)
    rows = torch.randn(3, 1, HIDDEN)
    torch.testing.assert_close(product(head, rows)[0], head(rows))


def test_predictions_under_bf16_autocast_are_not_rounded(tiny_llama):
    ids, mask = torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.long)
    states = []
    tiny_llama.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = read_final_position(tiny_llama, ids, mask).logits
    expected = states[0][0].double() @ tiny_llama.lm_head.weight.double().t()
    torch.testing.assert_close(logits.double(), expected, atol=1e-6, rtol=1e-6)
