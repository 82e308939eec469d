"""`SavingTrainer`: what is saved beside the weights, the model card, and the head that goes on from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.utils import get_config_model_id

from raft_peft.heads import Head
from raft_peft.messages import warn
from raft_peft.methods.head_origin import state_to_save
from raft_peft.methods.readout import Readout
from raft_peft.methods.saved_folder import HEAD_FILE, RaftConfig
from raft_peft.methods.saving import copy_beside_weights, save_beside_weights
from raft_peft.metrics import Evaluation
from raft_peft.training.datasets import RunDatasets
from raft_peft.training.example_counting import ExampleCountingTrainer
from raft_peft.training.fault_tolerance.resuming import check_resumed
from raft_peft.training.model_card import CardFacts, CardPictures, is_ours, save_card
from raft_peft.training.trained_weights import saved_as_trained

logger = logging.getLogger(__name__)


class SavingTrainer(ExampleCountingTrainer):
    """A trainer whose folders predict by themselves, with `raft_config.json`, the head and a model card.

    Overridden are what is saved and pushed, and what is loaded of a checkpoint. A subclass has a readout, datasets and
    evaluations.
    """

    readout: Readout
    evaluations: dict[str, Evaluation]
    _datasets: RunDatasets
    _custom_head: Head | None = None
    _tag_names = ["trl", "raft", "regression"]  # noqa: RUF012 - read by TRL
    _dataset_name: str | None = None
    _best_is_loaded = False

    def __init__(self, *args: Any, **kwargs: Any):
        self._pictures = CardPictures()
        super().__init__(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The head has a file of its own, so that the model's folder stays an ordinary one.
        head, state_dict = state_to_save(self.model, self.readout.head, state_dict)
        folder = output_dir if output_dir is not None else self.args.output_dir
        # PEFT writes a card of its own, so whose card it is has to be asked before.
        writes_card = is_ours(folder)
        with saved_as_trained(self.model), self.args.pickled_without_tokens():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_beside_weights(folder, self._raft_config(), head)
            if writes_card:
                self._save_card(folder)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the model card into `output_dir`, as every save does; see `SFTTrainer.create_model_card`."""
        if self.is_world_process_zero():
            self._dataset_name = dataset_name or self._dataset_name
            if is_ours(self.args.output_dir):
                self._save_card(self.args.output_dir, model_name, [tags] if isinstance(tags, str) else tags or [])

    def _save_card(self, folder: str, model_name: str | None = None, tags: Sequence[str] = ()) -> None:
        # A run must not end for its card, with other processes waiting for this one.
        try:
            facts = CardFacts.of_run(
                folder,
                self.model,
                self._raft_config(),
                self.args,
                name=model_name,
                repository=self.hub_model_id,
                dataset_name=self._dataset_name,
                steps=self._step_of_weights,
                epoch=self.state.epoch or 0,
                evaluations=self.evaluations,
                prompt_shape=self._datasets.prompt_shape,
                tags=(*self._tag_names, *tags),
            )
            save_card(facts, folder, self._pictures)
        except Exception as error:
            warn(logger, f"The model card of {folder} could not be written: {error!r}. The model itself is saved.")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # `Trainer` copies only the files that it knows of from the checkpoint.
        if self.is_world_process_zero():
            copy_beside_weights(checkpoint_folder, self.args.output_dir)
        with self.args.pickled_without_tokens():
            super()._push_from_checkpoint(checkpoint_folder)

    def _check_resumed(self, checkpoint: str) -> None:
        check_resumed(checkpoint, self._raft_config(), self.readout.head, self._tokenizer, self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best_is_loaded = True
        self._load_head(self.state.best_model_checkpoint)

    @property
    def _step_of_weights(self) -> int:
        best = self.state.best_global_step if self._best_is_loaded else None
        return self.state.global_step if best is None else best

    def _load_head(self, checkpoint: str) -> None:
        # Where the model is sharded, the engine's own state holds the head too, and has been loaded.
        if self.readout.has_parameters and not self._is_sharded:
            self.readout.load_head(Path(checkpoint) / HEAD_FILE)

    def _raft_config(self) -> RaftConfig:
        return RaftConfig.of_model(
            self.model,
            self._tokenizer,
            self.grid,
            self.args,
            grid_token_ids=self._datasets.grid_token_ids,
            head=self._custom_head,
            separator=self.args.separator,
            max_length=self.args.max_length,
            base_model=get_config_model_id(self.model.config),
            mixed_precision=self.accelerator.mixed_precision,
            train_rows=len(self.train_dataset) if isinstance(self.train_dataset, Dataset) else None,
            **self._datasets.form_of_prompts(),
        )
