"""From a batch to numbers, as a method reads them off the model: one path for training, evaluation and prediction."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_compiled_module

from raft_peft import decisions
from raft_peft.distribution import GridDistribution
from raft_peft.forward.completion import Completion, read_completion
from raft_peft.forward.decoding import generate_texts, numbers_in_texts
from raft_peft.forward.final_position import FinalPosition, read_final_position
from raft_peft.forward.layout_choice import Layouts, check_bidirectional
from raft_peft.forward.memory import nodes_at_once
from raft_peft.forward.model import (
    check_final_logits,
    device_of,
    keep_4bit_weights_as_they_are,
    read_inside,
)
from raft_peft.forward.prefix_cache import PrefixCache
from raft_peft.grid import NumberGrid
from raft_peft.grid.trie import Trie
from raft_peft.heads import Head
from raft_peft.messages import warn
from raft_peft.methods.head_origin import (
    carried_head,
    has_parameters,
    head_origin,
    load_parameters,
    new_head,
    own_head_of,
)
from raft_peft.methods.renormalization import lies_around_zero, renormalizes
from raft_peft.methods.saved_folder import HEAD_NAME
from raft_peft.methods.table import METHODS, MethodSettings

logger = logging.getLogger(__name__)

# Below this mean probability of the grid, the first batch is worth a warning.
_SMALL_MASS = 0.05
# Renormalized, predictions are read from the grid's share alone, however small; below this one it says little.
_TINY_MASS = 0.01


@dataclass(frozen=True)
class HeadOutput:
    """What the head made of a batch.

    Attributes:
        output: a distribution over the grid, or one number a row, of shape (batch,); None where the batch was read for
            its target alone.
        auxiliary_loss: the model's own, where it has one.
        constrained_log_probs, greedy_misses: what decoding within the grid gives, where it was asked for and some
            numbers are several tokens, of shape (batch, grid); see [`TrieReading`].
        tail_log_probs: of the last tokens of the prompts, where the batch has a `reasoning_mask`, of its shape, 0
            where that is False.
    """

    output: GridDistribution | torch.Tensor | None
    auxiliary_loss: torch.Tensor | None = None
    constrained_log_probs: torch.Tensor | None = None
    greedy_misses: torch.Tensor | None = None
    tail_log_probs: torch.Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """What a batch was read as.

    Attributes:
        predictions: one number a row in the unit of the labels, float32, of shape (batch,).
        distribution: over the numbers that the head chooses from; None where it gives one number alone.
        parsed: where numbers were parsed from texts, the share of each row's texts that hold one, of shape (batch,).
    """

    predictions: torch.Tensor
    distribution: GridDistribution | None
    parsed: torch.Tensor | None


def joined(parts: Sequence[Reading], order: torch.Tensor | None = None) -> Reading:
    """The readings of several batches as one on the CPU, with their rows in another order where one is given."""

    def rows(tensors: list[torch.Tensor]) -> torch.Tensor:
        whole = torch.cat(tensors).cpu()
        return whole if order is None else whole[order]

    first = parts[0]
    distribution = None
    if first.distribution is not None:
        log_probs = rows([part.distribution.log_probs for part in parts if part.distribution is not None])
        distribution = GridDistribution(log_probs, first.distribution.values.cpu())
    parsed = None if first.parsed is None else rows([part.parsed for part in parts if part.parsed is not None])
    return Reading(rows([part.predictions for part in parts]), distribution, parsed)


class Readout:
    """A method at work on a model: its head, and how the head's output becomes a number.

    The model stays as it is. `attach` lets it carry the head, as training needs it. A head that it carries from
    training is the one that reads it, where its settings and its grid are the same.

    Args:
        model: a causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        grid: the numbers that the model may answer with.
        settings: the method and its options.
        grid_token_ids: the tokens of each grid value, for a head that starts from them; None where no row was seen.
        head: instead of the method's own.
        padding_free: lay the rows of a batch end to end in one, and what they begin with in common once.

    Raises:
        ValueError: the model cannot be read like this.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        grid: NumberGrid,
        settings: MethodSettings,
        *,
        grid_token_ids: tuple[tuple[int, ...], ...] | None,
        head: Head | None = None,
        padding_free: bool = False,
    ):
        check_final_logits(model)
        keep_4bit_weights_as_they_are(model)
        if settings.attention == "bidirectional":
            check_bidirectional(model)
        self.tokenizer = tokenizer
        self.grid = grid
        self.settings = settings
        self.method = METHODS[settings.method]
        self.head_origin = head_origin(settings, grid, tokenizer, own_head=own_head_of(head))
        if head is None:
            head = carried_head(model, self.head_origin)
        if head is None:
            head = new_head(model, tokenizer, grid, settings, grid_token_ids)
        self.head = head.to(device_of(model.get_output_embeddings()))
        self.has_parameters = has_parameters(head)
        # Text is parsed as it is, and beside it stands the expectation, as method `rail` would give it.
        around_zero = self.method.reads_text and lies_around_zero(grid)
        self.renormalize = around_zero or renormalizes(settings, grid, head)
        self.layouts = Layouts(model, padding_free=padding_free, bidirectional=settings.attention == "bidirectional")
        self._mass_checked = False
        self._said_untrained = False

    def attach(self, model: Any) -> None:
        """Let the model carry this head and no other, so that it trains, moves and is wrapped with it.

        A wrapper that FSDP put around the head is left as it is.
        """
        for module in list(model.modules()):
            found = module._modules.get(HEAD_NAME)
            if isinstance(found, Head) and (found is not self.head or module is not model):
                del module._modules[HEAD_NAME]
        if self.has_parameters and HEAD_NAME not in model._modules:
            setattr(model, HEAD_NAME, self.head)
        # PEFT freezes all that a model carries when it makes an adapter. A head of the user's own is the user's.
        if self.head.origin is not None:
            self.head.requires_grad_(True)

    @property
    def padding_free(self) -> bool:
        """Whether rows are laid end to end; turned off at the first batch where the model cannot read them so."""
        return self.layouts.padding_free

    @property
    def values(self) -> torch.Tensor:
        """The numbers of the head's distribution, on the CPU, of shape (values,)."""
        numbers = getattr(self.head, "values", None)
        return torch.tensor(self.grid.values) if numbers is None else numbers.detach().clone().float().cpu()

    @property
    def reads_text(self) -> bool:
        """Whether a number is parsed from generated text."""
        return self.method.reads_text or self._sampled_texts is not None

    @property
    def _sampled_texts(self) -> int | None:
        """How many texts of each prompt are sampled; None where none is, since `mbr` draws from the grid instead."""
        return self.settings.num_samples if self.settings.method == "rail" else None

    @property
    def _must_be_inside(self) -> bool:
        """Whether a wrapper for distributed training must see the head at work, or a compiler its hidden states."""
        return self.has_parameters or self.head.reads_hidden_states

    def can_cache_prefixes(self, model: Any) -> bool:
        """Whether what prompts begin with can be run once for all, see [`PrefixCache`]."""
        return not self.head.reads_hidden_states and self.layouts.can_cache_prefixes(model)

    def read_head(
        self,
        model: Any,
        batch: Mapping[str, torch.Tensor],
        *,
        unwrapped: Any = None,
        prefix: PrefixCache | None = None,
        grouped: bool = False,
        **kwargs: Any,
    ) -> HeadOutput:
        """The head's output on the final position of each row.

        Args:
            model: the model, or its wrapper for distributed training.
            batch: of the collator.
            unwrapped: the model, where the pass is carried out inside the forward of `model`, see `read_inside`.
            prefix: what all rows begin with, where it has been run.
            grouped: whether rows that share more are run together, with that once.
            kwargs: passed on to the forward.

        Raises:
            ValueError: the grid's numbers need more memory than there is, or cannot be read with this attention.
        """
        itself = model if unwrapped is None else unwrapped
        trie = Trie.in_batch(batch)
        grid_token_ids = batch["grid_token_ids"] if trie is None else trie.token_ids
        trie = trie if self.head.reads_grid else None
        options = {
            "layout": self.layouts.choose(itself, trie, prefix, grouped=grouped),
            "hidden_states": self.head.reads_hidden_states,
            "constrained": self.settings.constrained,
            "max_nodes": None if trie is None or torch.is_grad_enabled() else nodes_at_once(itself, trie),
            "tail": batch.get("reasoning_mask"),
            **kwargs,
        }

        def run_head(model: Any) -> dict[str, torch.Tensor]:
            final = read_final_position(model, batch["input_ids"], batch["attention_mask"], trie, **options)
            return self._apply_head(final, grid_token_ids)

        inside = unwrapped is not None and (self._must_be_inside or not is_compiled_module(model))
        found = read_inside(model, run_head) if inside else run_head(model)
        output = found.get("predictions")
        if output is None:
            output = self._over_options(GridDistribution(found["log_probs"], found["values"]), batch)
            self._warn_if_grid_mass_is_small(output)
        more = ("aux_loss", "constrained_log_probs", "greedy_misses", "tail_log_probs")
        return HeadOutput(output, *(found.get(name) for name in more))

    def _over_options(self, distribution: GridDistribution, batch: Mapping[str, torch.Tensor]) -> GridDistribution:
        """From the distribution over the texts of a batch to that over what can be answered: here the grid itself."""
        return distribution

    def _apply_head(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        # A head that the model does not carry did not move with it.
        own = next(itertools.chain(self.head.parameters(), self.head.buffers()), None)
        if own is not None and own.device != final.logits.device:
            self.head.to(final.logits.device)
        with torch.autocast(final.logits.device.type, enabled=False):
            output = self.head(final, grid_token_ids.to(final.logits.device))
        if isinstance(output, GridDistribution):
            read = {"log_probs": output.log_probs, "values": output.values}
        else:
            read = {"predictions": output}
        more = {"aux_loss": final.outputs.get("aux_loss"), "tail_log_probs": final.tail_log_probs}
        if final.trie is not None:
            more["constrained_log_probs"] = final.trie.constrained_log_probs
            more["greedy_misses"] = final.trie.greedy_misses
        return read | {name: tensor for name, tensor in more.items() if tensor is not None}

    def _warn_if_grid_mass_is_small(self, distribution: GridDistribution) -> None:
        """Say, at the first batch, where the model hardly answers with a number of the grid."""
        if self._mass_checked or self.head.sums_to_one or self.reads_text:
            return
        self._mass_checked = True
        mass = distribution.mass.mean().item()
        if mass >= (_TINY_MASS if self.renormalize else _SMALL_MASS):
            return
        answers = f"The model answers with a number of the grid with a probability of {mass:.2%} only"
        if self.renormalize:
            warn(
                logger,
                f"{answers}, and the predictions are read from this alone. The loss does not see what it answers "
                "instead, so training may leave it there. Let the prompt ask for the number more plainly, or take a "
                "grid that the model writes by itself, such as fewer or shorter numbers.",
            )
            return
        # One number alone cannot be renormalized, and its mass is to follow the target.
        aim = "until `grid_mass` is near 1" if len(self.grid) > 1 else "until its probability follows the labels"
        can_renormalize = "renormalize" in self.method.takes and len(self.grid) > 1
        cure = "Set `renormalize=True`, or train" if can_renormalize else "Train"
        warn(
            logger,
            f"{answers}, and all else counts as 0: the predictions of the first batch are near 0. {cure} {aim}, or "
            "let the prompt ask for the number more plainly.",
        )

    def read_target(
        self, model: Any, batch: Mapping[str, torch.Tensor], *, unwrapped: Any = None, **kwargs: Any
    ) -> tuple[Completion, HeadOutput]:
        """The log-probabilities of the target's text, and the distribution over the grid at its first token, where
        that is a number's only one."""

        def run_target(model: Any) -> dict[str, torch.Tensor | None]:
            ids, mask, target_ids = batch["input_ids"], batch["attention_mask"], batch["target_ids"]
            tail = batch.get("reasoning_mask")
            return dict(vars(read_completion(model, ids, mask, target_ids, tail=tail, **kwargs)))

        inside = unwrapped is not None and not is_compiled_module(model)
        found: dict[str, Any] = read_inside(model, run_target) if inside else run_target(model)
        completion = Completion(**found)
        distribution = None
        if "grid_token_ids" in batch:
            logits = completion.first_logits
            ids = batch["grid_token_ids"].to(logits.device)
            distribution = GridDistribution.from_logits(logits, ids, self.grid.values)
        tail = completion.tail_log_probs
        return completion, HeadOutput(distribution, completion.auxiliary_loss, tail_log_probs=tail)

    def expectation(self, output: GridDistribution | torch.Tensor) -> torch.Tensor:
        """The prediction that a loss is taken of: the head's number, or the mean of its distribution."""
        if isinstance(output, GridDistribution):
            return decisions.mean(output, renormalize=self.renormalize)
        return output

    def decide(self, output: GridDistribution | torch.Tensor) -> torch.Tensor:
        """The number that is reported: the head's own, or what the decision rule makes of its distribution."""
        if isinstance(output, GridDistribution):
            return decisions.decide(output, self.settings.decision, renormalize=self.renormalize)
        return output

    def read(self, head: HeadOutput, model: Any, batch: Mapping[str, torch.Tensor]) -> Reading:
        """The numbers of a batch that the head has read; a method that reads text writes it now.

        `model` is the model without any wrapper.
        """
        output = head.output
        if output is None:
            raise ValueError("The batch was read for its target alone. Read it with `read_head`.")
        distribution = output if isinstance(output, GridDistribution) else None
        if not self.reads_text:
            return Reading(self.decide(output), distribution, None)
        if self.settings.constrained and distribution is not None:
            return Reading(self._decode_within_grid(head, distribution), distribution, torch.ones(len(distribution)))
        texts = generate_texts(
            model,
            self.tokenizer,
            batch["input_ids"],
            batch["attention_mask"],
            num_samples=self._sampled_texts,
        )
        predictions, parsed = numbers_in_texts(texts, self.grid)
        device = batch["input_ids"].device
        return Reading(predictions.to(device), distribution, parsed.to(device))

    def _decode_within_grid(self, head: HeadOutput, distribution: GridDistribution) -> torch.Tensor:
        """The number that greedy decoding gives, or the mean of samples, with all but the grid ruled out."""
        log_probs = head.constrained_log_probs
        if log_probs is None:  # one token each
            log_probs = distribution.renormalized().log_probs
        if self._sampled_texts is not None:
            drawn = log_probs.exp().multinomial(self._sampled_texts, replacement=True)
            return distribution.values[drawn].mean(-1)
        misses = -log_probs if head.greedy_misses is None else head.greedy_misses
        return distribution.values[misses.argmin(-1)]

    def load_head(self, path: str | Path) -> None:
        """Read the head's parameters back.

        Raises:
            ValueError: the file does not fit the head.
        """
        load_parameters(self.head, path, self.settings.method)

    def refuse_untrained(self) -> None:
        """Raise a ValueError where the head has parameters that nobody trained or loaded."""
        if self.has_parameters and self.head.is_new:
            raise ValueError(
                f"The head of method {self.settings.method!r} has parameters, and the model does not carry a head "
                "that was trained with these settings on this grid. Open the folder that the trainer saved, with "
                "RegressionPredictor.from_pretrained(folder); or pass `head=`, such as trainer.readout.head."
            )

    def warn_where_untrained(self) -> None:
        """Say, once, that a head with parameters reads numbers which nobody trained or loaded."""
        if self._said_untrained or not (self.has_parameters and self.head.is_new):
            return
        self._said_untrained = True
        warn(
            logger,
            f"The head of method {self.settings.method!r} is new: its parameters were neither trained nor loaded, so "
            "these predictions say nothing of the model. Train first; or, where the head was saved, pass the name of "
            "its folder in place of the open model.",
        )
