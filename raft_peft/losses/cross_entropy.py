"""Cross-entropy of the target's text, the loss of ordinary fine-tuning."""

from __future__ import annotations

import torch


def cross_entropy(log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """-log p(str(y*) and the end token | x) for each example (the paper's eq. 8).

    Args:
        log_probs: log-probability of each token of the target, of shape (batch, tokens).
        mask: 1 on the target's tokens and 0 on padding, of shape (batch, tokens).

    Returns:
        The loss of each example in nats, summed over its tokens, float32, of shape (batch,).
    """
    return -(log_probs.float() * mask).sum(-1)
