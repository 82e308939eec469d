"""`FaultTolerantTrainer`: a run that can be killed, fill a disk or diverge, and goes on from what is whole."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from trl import SFTTrainer

from raft_peft.messages import warn
from raft_peft.training.fault_tolerance.checkpoints import (
    check_output_folder,
    checkpoint_bytes,
    last_whole_checkpoint,
    named_where_it_fails,
    why_not_whole,
)

logger = logging.getLogger(__name__)

# An error names so many rows, each by the end of its prompt.
_SHOWN_ROWS = 8
_SHOWN_CHARACTERS = 160


class FaultTolerantTrainer(SFTTrainer):
    """TRL's `SFTTrainer`, which goes on from the last whole checkpoint and stops before it takes a step into NaN.

    Overridden are `train`, `save_model`, the saving of checkpoints, and the last moment before the optimizer's step.
    """

    # The batches of the optimizer step are kept to name their rows where its gradient is not finite.
    _step_batches: Sequence[dict[str, torch.Tensor]] = ()
    # The rows of this process with a loss that is not finite; None where no process has any in this step.
    _non_finite_rows: list[str] | None = None
    # The folders of the checkpoints that this run wrote or went on from are not written a second time.
    _saved_here: set[str] = set()  # noqa: RUF012 - made anew by `train`

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`, which here can be stopped at any moment.

        Args:
            resume_from_checkpoint: a checkpoint's folder; or True for the last one of `output_dir` that is whole, and
                the beginning where there is none yet, so that a command can be repeated until it has ended.
            args, kwargs: as in `Trainer.train`.

        Raises:
            ValueError: the checkpoint is not whole, or of another run.
            OSError: the output folder cannot be written to, or is full.
            NonFiniteLossError: the loss or its gradient is not a number, see `RegressionAwareConfig.non_finite_loss`.
        """
        self._non_finite_rows = None
        checkpoint: str | None = None
        # A command line gives the words in place of the value.
        if resume_from_checkpoint in (True, "True", "true"):
            (checkpoint,) = broadcast_object_list([last_whole_checkpoint(self.args.output_dir)])
            if checkpoint is None:
                folder = self.args.output_dir
                warn(logger, f"There is no whole checkpoint in {folder}. Training starts from the beginning.")
        elif resume_from_checkpoint:
            checkpoint = str(resume_from_checkpoint)
            reason = why_not_whole(checkpoint)
            if reason is not None:
                raise ValueError(
                    f"Training cannot go on from {checkpoint!r}, since {reason}. Pass another checkpoint, or True for "
                    "the last whole one of `output_dir`."
                )
        if checkpoint is not None:
            self._check_resumed(checkpoint)
        if self.args.non_finite_loss == "skip" and self.is_deepspeed_enabled:
            raise ValueError(
                "`non_finite_loss='skip'` does not work with DeepSpeed, whose engine takes the step within the "
                "backward pass. Leave it at 'stop'; with fp16 DeepSpeed skips such steps itself."
            )
        self._saved_here = {str(checkpoint)}
        self._check_output_folder()
        return super().train(checkpoint, *args, **kwargs)

    def _check_resumed(self, checkpoint: str) -> None:
        """Called with a whole checkpoint before training goes on from it; a subclass may refuse it."""

    def _check_output_folder(self) -> None:
        error = None
        if self.is_world_process_zero():
            weights_alone = self.args.save_only_model or self.args.save_strategy == SaveStrategy.NO
            needed = checkpoint_bytes(self.model, self.args.optim, save_only_model=weights_alone)
            try:
                check_output_folder(self.args.output_dir, needed)
            except OSError as found:
                error = found
        # All processes get the error, so that none waits for one that has stopped.
        (error,) = broadcast_object_list([error])
        if error is not None:
            raise error

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed from its very last step, `Trainer` would take another where that was not the end of an epoch.
        if 0 < self.state.max_steps <= self.state.global_step:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _note_non_finite(self, batch: dict[str, torch.Tensor], which: torch.Tensor) -> None:
        """Remember, on all processes, that a loss of the step is not a number, and here in which rows."""
        self._non_finite_rows = [*(self._non_finite_rows or []), *rows_of(batch, self._tokenizer, which)]
        # DeepSpeed's engine takes the step within the backward pass, so this is the last moment before it.
        if self.is_deepspeed_enabled:
            self._stop_or_skip("loss", self._non_finite_rows)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The last moment before the optimizer's step, at which the weights are still those of the step before."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # DeepSpeed's engine has taken the step already.
        if self.is_deepspeed_enabled:
            return grad_norm
        # The scaler of fp16 lowers its scale and skips the step by itself where the gradient is not finite.
        scaled = self.accelerator.scaler is not None
        if self._non_finite_rows is not None:
            self._stop_or_skip("loss", self._non_finite_rows)
            model.zero_grad()
        elif not scaled and not math.isfinite(float(grad_norm)):
            self._stop_or_skip(
                "gradient", [row for batch in self._step_batches for row in rows_of(batch, self._tokenizer)]
            )
            model.zero_grad()
        self._non_finite_rows = None
        return grad_norm

    def _stop_or_skip(self, what: str, rows: list[str]) -> None:
        rows = gather_object(rows)
        step = self.state.global_step + 1
        dtype, mixed = str(self.model.dtype).removeprefix("torch."), self.accelerator.mixed_precision
        text = explanation(step, what, rows, self._get_learning_rate(), f"{dtype} weights, mixed precision {mixed}")
        finite = all(gather_object([weights_are_finite(self.model)]))
        if self.args.non_finite_loss == "skip" and finite:
            warn(logger, f"{text}\nThe weights stay as they are in this step (`non_finite_loss='skip'`).")
            return
        if finite and self.state.global_step > 0:
            folder = self._checkpoint_folder()
            if folder not in self._saved_here:
                self._save_checkpoint(self.model, trial=None)
            saved = f"The weights before this step are saved in {folder}."
        elif finite:
            saved = "No step was taken before."
        else:
            saved = "The weights are not finite either. Earlier checkpoints may be finite."
        raise NonFiniteLossError(f"{text}\n{saved} `non_finite_loss='skip'` leaves such a step out.")

    def _checkpoint_folder(self) -> str:
        return str(Path(self._get_output_dir(trial=None)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what `RegressionPredictor.from_pretrained` opens, whole also where training sharded it."""
        folder = output_dir or self.args.output_dir
        with contextlib.nullcontext() if _internal_call else named_where_it_fails(folder), self._whole(_internal_call):
            super().save_model(output_dir, _internal_call)

    @contextmanager
    def _whole(self, is_checkpoint: bool) -> Iterator[None]:
        """Under FSDP, the state in one piece, whatever checkpoints are saved in: a sharded one holds no adapter."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None or is_checkpoint:
            yield
            return
        before = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            yield
        finally:
            plugin.set_state_dict_type(before)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._checkpoint_folder()
        with named_where_it_fails(folder):
            # A checkpoint of an earlier run in this folder would look whole while it is overwritten.
            if self.args.should_save:
                (Path(folder) / TRAINER_STATE_NAME).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
        self._saved_here.add(folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The next file written, trainer_state.json, says that the checkpoint is whole, also for the other processes.
        self.accelerator.wait_for_everyone()


class NonFiniteLossError(FloatingPointError):
    """Training was stopped, since the loss or its gradient is not a finite number."""


def rows_of(batch: dict[str, torch.Tensor], tokenizer: Any, which: torch.Tensor | None = None) -> list[str]:
    """The ends of a batch's prompts and their labels, one line a row; of those alone for which `which` is true."""
    lines = []
    for index, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        if which is None or which[index]:
            text = tokenizer.decode(ids[mask.bool()], skip_special_tokens=False)
            text = text if len(text) <= _SHOWN_CHARACTERS else f"... {text[-_SHOWN_CHARACTERS:]}"
            label = f"label {batch['labels'][index].item():g}"
            if "pair" in batch and batch["pair"][index]:
                label = "chosen" if batch["pair"][index] > 0 else "rejected"
            lines.append(f"{label}: {text!r}")
    return lines


def explanation(step: int, what: str, rows: Iterable[str], learning_rate: float, dtypes: str) -> str:
    """What to say of a step whose loss or gradient is not finite.

    Args:
        step: the number of the optimizer step, from 1.
        what: "loss" or "gradient".
        rows: of the batch, as `rows_of` gives them.
        learning_rate: of the step.
        dtypes: of the weights and of the products, in words.
    """
    rows = list(rows)
    shown = rows[:_SHOWN_ROWS]
    more = [f"and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    of_rows = "\n".join(f"  {line}" for line in [*shown, *more])
    return (
        f"The {what} of step {step} is not a finite number. The rows:\n{of_rows}\n"
        f"Usual causes: a learning rate that is too high (here {learning_rate:g}); fp16 on a model that was trained "
        f"in bf16, such as Gemma (here {dtypes}; set `bf16=True` or neither); a model whose weights are damaged, or a "
        "loss or head of your own that divides by zero or takes the logarithm of it."
    )


def weights_are_finite(model: Any) -> bool:
    """Whether all trained weights are, as far as this process holds them."""
    held = (getattr(weight, "to_local", lambda w=weight: w)() for weight in model.parameters() if weight.requires_grad)
    return all(bool(torch.isfinite(weight).all()) for weight in held)
