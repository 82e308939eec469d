import pytest
import torch

from raft_peft.losses import cross_entropy

# Two targets, of three tokens and of one; nothing but the mask says that the last two are padding.
LOG_PROBS = torch.tensor([[-0.5, -1.25, -2.0], [-3.0, -7.0, -9.0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


def test_the_sum_over_the_target_without_its_padding():
    assert cross_entropy(LOG_PROBS, MASK).tolist() == [3.75, 3.0]


def test_the_gradient_is_minus_one_on_every_token_and_zero_on_padding():
    log_probs = LOG_PROBS.clone().requires_grad_()
    cross_entropy(log_probs, MASK).sum().backward()
    assert log_probs.grad.tolist() == [[-1, -1, -1], [-1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_masks_of_any_dtype(dtype):
    assert cross_entropy(LOG_PROBS, MASK.to(dtype)).tolist() == [3.75, 3.0]


def test_bf16_is_summed_in_float32():
    # 1 and 300 times 1/256 are 2.171875, which bf16, with steps of 1/64 from 2 on, would not reach token by token.
    log_probs = torch.full((1, 301), -1 / 256, dtype=torch.bfloat16)
    log_probs[0, 0] = -1
    assert cross_entropy(log_probs, torch.ones(1, 301)).item() == 1 + 300 / 256
