"""The log-probabilities of a target's text behind its prompt, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from raft_peft.distribution import log_probs_of
from raft_peft.forward.final_position import log_probs_of_tail
from raft_peft.forward.layouts import Sequences, padded_left
from raft_peft.forward.model import run


@dataclass(frozen=True)
class Completion:
    """What the model says of the target's text.

    Attributes:
        log_probs: of each token of the target, float32, 0 on padding, of shape (batch, tokens).
        mask: 1 on the target's tokens and 0 on padding, of shape (batch, tokens).
        first_logits: the logits of the target's first token, of shape (batch, vocabulary).
        auxiliary_loss: the model's own, where it has one.
        tail_log_probs: of the last tokens of each prompt, as in [`FinalPosition`]; None where they were not asked for.
    """

    log_probs: torch.Tensor
    mask: torch.Tensor
    first_logits: torch.Tensor
    auxiliary_loss: torch.Tensor | None
    tail_log_probs: torch.Tensor | None = None


def read_completion(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    tail: torch.Tensor | None = None,
    **kwargs: Any,
) -> Completion:
    """Run the model's own forward over prompt and target, keeping the logits of the target alone.

    Args:
        model: the model, without a wrapper for distributed training, see `model.read_inside`.
        input_ids: tokens of the prompts, of shape (batch, length).
        attention_mask: 1 on real tokens and 0 on padding, of shape (batch, length).
        target_ids: tokens of the targets, padded on the right with -100, of shape (batch, tokens).
        tail: as in `read_final_position`.
        kwargs: passed on to the forward.
    """
    input_ids, attention_mask = padded_left(input_ids, attention_mask)
    mask = (target_ids >= 0).long()
    tokens = target_ids.clamp(min=0)
    sequences = Sequences(
        torch.cat([input_ids, tokens[:, :-1]], dim=1),
        torch.cat([attention_mask, mask[:, :-1]], dim=1),
        None,
        keep=target_ids.shape[1],
    )
    if tail is not None:
        sequences = sequences.keeping_earlier(tail.shape[1])
    outputs, _ = run(model, sequences, **kwargs)
    earlier, logits = sequences.split_logits(outputs.logits)
    tail_log_probs = None if tail is None else log_probs_of_tail(earlier, input_ids, tail)
    log_probs = log_probs_of(logits, tokens.unsqueeze(-1)).squeeze(-1)
    return Completion(log_probs * mask, mask, logits[:, 0], outputs.get("aux_loss"), tail_log_probs)
