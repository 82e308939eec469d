"""From a batch to numbers, as a method reads them off the model: one path for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raft_peft import decisions
from raft_peft.completion import Completion, read_completion
from raft_peft.decoding import generate_texts, numbers_in_texts
from raft_peft.distribution import GridDistribution
from raft_peft.final_position import FinalPosition, check_bidirectional, check_final_logits, read_final_position
from raft_peft.grid import NumberGrid
from raft_peft.heads import Head, HeadSetup
from raft_peft.methods import METHODS, MethodSettings

HEAD_NAME = "regression_head"
HEAD_FILE = f"{HEAD_NAME}.safetensors"


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


class Readout:
    """A method at work on a model: its head, and how the head's output becomes a number.

    The head is attached to the model as `regression_head`, where it has parameters, so that it trains, moves and is
    wrapped with it.

    Args:
        model: a causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        grid: the numbers that the model may answer with.
        settings: the method and its options.
        grid_token_ids: the token of each grid value, for a head that starts from them; None where no row was seen.
        head: instead of the method's own.

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
        grid_token_ids: tuple[int, ...] | None,
        head: Head | None = None,
    ):
        check_final_logits(model)
        if settings.attention == "bidirectional":
            check_bidirectional(model)
        self.tokenizer = tokenizer
        self.grid = grid
        self.settings = settings
        self.method = METHODS[settings.method]
        weight = model.get_output_embeddings().weight
        if head is None:
            setup = HeadSetup(
                values=grid.values,
                grid_token_ids=grid_token_ids,
                vocab_size=model.config.get_text_config().vocab_size,
                hidden_size=model.config.get_text_config().hidden_size,
            )
            head = self.method.head(settings, setup, tokenizer)
            head = _trained_head(model, like=head) or head
        self.head = head.to(weight.device)
        self.has_parameters = any(True for _ in head.parameters())
        if self.has_parameters:
            setattr(model, HEAD_NAME, self.head)

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

    def read_head(
        self, model: Any, batch: Mapping[str, torch.Tensor], *, unwrapped: Any = None, **kwargs: Any
    ) -> tuple[GridDistribution | torch.Tensor, torch.Tensor | None]:
        """The head's output on the final position of each row, and the model's auxiliary loss where it has one."""
        if self.settings.attention == "bidirectional":
            kwargs["is_causal"] = False
        read = read_final_position(
            model,
            batch["input_ids"],
            batch["attention_mask"],
            unwrapped=unwrapped,
            hidden_states=self.head.reads_hidden_states,
            reader=lambda final: self._apply_head(final, batch["grid_token_ids"]),
            **kwargs,
        )
        if "log_probs" in read:
            return GridDistribution(read["log_probs"], read["values"]), read.get("aux_loss")
        return read["predictions"], read.get("aux_loss")

    def _apply_head(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(final.logits.device.type, enabled=False):
            output = self.head(final, grid_token_ids.to(final.logits.device))
        if isinstance(output, GridDistribution):
            read = {"log_probs": output.log_probs, "values": output.values}
        else:
            read = {"predictions": output}
        auxiliary_loss = final.outputs.get("aux_loss")
        return read if auxiliary_loss is None else {**read, "aux_loss": auxiliary_loss}

    def read_target(
        self, model: Any, batch: Mapping[str, torch.Tensor], *, unwrapped: Any = None, **kwargs: Any
    ) -> tuple[Completion, GridDistribution, torch.Tensor | None]:
        """The log-probabilities of the target's text, the distribution over the grid at its first token, and the
        model's auxiliary loss where it has one."""
        completion = read_completion(
            model, batch["input_ids"], batch["attention_mask"], batch["target_ids"], unwrapped=unwrapped, **kwargs
        )
        distribution = GridDistribution.from_logits(
            completion.first_logits, batch["grid_token_ids"].to(completion.first_logits.device), self.grid.values
        )
        return completion, distribution, completion.outputs.get("aux_loss")

    def expectation(self, output: GridDistribution | torch.Tensor) -> torch.Tensor:
        """The prediction that a loss is taken of: the head's number, or the mean of its distribution."""
        if isinstance(output, GridDistribution):
            return decisions.mean(output, renormalize=self.settings.renormalize)
        return output

    def decide(self, output: GridDistribution | torch.Tensor) -> torch.Tensor:
        """The number that is reported: the head's own, or what the decision rule makes of its distribution."""
        if isinstance(output, GridDistribution):
            return decisions.decide(output, self.settings.decision, renormalize=self.settings.renormalize)
        return output

    def read(
        self,
        output: GridDistribution | torch.Tensor,
        model: Any,
        batch: Mapping[str, torch.Tensor],
    ) -> Reading:
        """The numbers of a batch, of which the head's output is known; a method that reads text writes it now.

        `model` is the model without any wrapper.
        """
        distribution = output if isinstance(output, GridDistribution) else None
        if not self.reads_text:
            return Reading(self.decide(output), distribution, None)
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

    def load_head(self, path: str | Path) -> None:
        """Read the head's parameters back.

        Raises:
            ValueError: the file does not fit the head.
        """
        try:
            self.head.load_state_dict(load_file(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{path} does not fit the head of method {self.settings.method!r}, {type(self.head).__name__}: {error}"
            ) from error


def save_head(parameters: Mapping[str, torch.Tensor], folder: str | Path) -> None:
    """Write a head's parameters into a folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
    save_file(tensors, Path(folder) / HEAD_FILE)


def _trained_head(model: Any, like: Head) -> Head | None:
    """The head that the model carries already, from its trainer, where it is of the same kind and sizes."""
    found = getattr(model, HEAD_NAME, None)
    if type(found) is not type(like):
        return None
    shapes, expected = ([parameter.shape for parameter in head.parameters()] for head in (found, like))
    return found if shapes == expected else None
