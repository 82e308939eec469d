"""Which methods can answer with a grid of one number."""

from __future__ import annotations

from raft_peft.grid import NumberGrid, number_text
from raft_peft.heads import Head
from raft_peft.methods.table import METHODS, MethodSettings


def check_grid(settings: MethodSettings, grid: NumberGrid, head: Head | None = None) -> None:
    """Refuse a grid of one number where every prediction would be the same.

    Over the whole vocabulary the prediction is 5 p(5 | x), from 0 to 5, which is as good as any grid (the paper's
    Table 13). Given that the answer is on the grid, it is always 5.

    Args:
        settings: the method and its options.
        grid: the numbers that the model answers with.
        head: in place of the method's own; one of the user's may make anything of the grid.

    Raises:
        ValueError: the message names the setting, the reason and the cure.
    """
    if len(grid) > 1 or (head is not None and head.origin is None):
        return
    number = number_text(grid.values[0])
    reason = _same_for_every_prompt(settings, number)
    if reason is not None:
        raise ValueError(f"The grid holds {number} alone. {reason}, or give the grid a second number.")


def _same_for_every_prompt(settings: MethodSettings, number: str) -> str | None:
    """Why a grid of this number alone cannot be predicted with, and what to do; None where it can."""
    method = settings.method
    if method == "log_loss":
        return (
            "Method 'log_loss' scales the targets between the least and the greatest number of the grid, and they are "
            "the same. Use method 'raft'"
        )
    if METHODS[method].renormalizes or settings.distribution_loss is not None:
        added = settings.distribution_loss
        by = f"method {method!r}" if added is None else f"`distribution_loss={added!r}`"
        cure = "Use method 'raft'" if added is None else "Leave it out"
        return f"Its distribution is always sure of {number}, so that {by} has nothing to learn. {cure}"
    if settings.constrained:
        return f"With `constrained=True` every text would be {number}. Leave it off"
    if settings.decision != "mean":
        return (
            f"`decision={settings.decision!r}` chooses among the numbers of the grid, so every prediction would be "
            f"{number}. Leave it at 'mean'"
        )
    if method not in ("raft", "rail", "mbr") or (method == "rail" and settings.num_samples is not None):
        return None
    if number == "0":
        return "The prediction is the number times its probability, which is 0 for every prompt. Take another number"
    if settings.renormalize:
        return (
            f"With `renormalize=True` its probability is divided by itself, so every prediction would be {number}. "
            "Set `renormalize=False`"
        )
    if method == "mbr" and settings.num_samples is None:
        return (
            "The loss of method 'mbr' is then the least where its probability is 0, whatever the target. Set "
            "`num_samples`, with which everything off the grid counts as 0, or use method 'raft'"
        )
    return None
