"""A table made ready on a machine: its settings, its rows, and the runs that are planned and done."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import is_torch_bf16_gpu_available

from raft_peft.compare import CompareSettings
from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.comparison import RUNS
from raft_peft.compare.results import RunResult, finished_runs
from raft_peft.compare.rows import kept_rows, load_rows
from raft_peft.compare.schedule import planned_runs, settings_at, train_sizes
from raft_peft.forward.cpu_precision import cpu_multiplies_bf16
from results.tables import Table

# The tokens of so many prompts are counted, for an estimate.
_COUNTED = 200
# A forward pass takes a third of a training step's time.
_FORWARD = 1 / 3

# A method and its number of training rows; None for all of them, and for a method that is not trained.
Kind = tuple[str, int | None]


def for_this_device() -> dict[str, Any]:
    """The settings that the trainer chooses by the device when they are left open, as a comparison takes them."""
    on_gpu = torch.accelerator.is_available()
    return {"bf16": is_torch_bf16_gpu_available() if on_gpu else cpu_multiplies_bf16(), "padding_free": not on_gpu}


@dataclass
class Prepared:
    """A table with the settings of its comparison on this machine.

    Attributes:
        table: the table.
        settings: of its comparison.
        rows: how many rows each split has.
        tokens: of a prompt, on average.
    """

    table: Table
    settings: CompareSettings
    rows: Mapping[str, int]
    tokens: float

    @classmethod
    def of(cls, table: Table, data: str, output: Path, models: str | None, *, quick: bool) -> Prepared:
        """Read a table's rows, so that what is wrong with them is found before anything is run."""
        model = table.model if models is None else str(Path(models) / table.model)
        fixed = {**for_this_device(), "model": model, "output_dir": str(output / (table.folder or table.name))}
        few = CompareSettings(**fixed | table.options(data, quick=quick))
        # Each comparison says again which rows it holds out.
        with redirect_stdout(io.StringIO()):
            data_set = kept_rows(load_rows(few), few)
        rows = {split: len(kept) for split, kept in data_set.items()}
        settings = CompareSettings(**fixed | table.options(data, train_rows=rows["train"], quick=quick))
        prompts = data_set["train"].select(range(min(rows["train"], _COUNTED)))["prompt"]
        counted = AutoTokenizer.from_pretrained(model)(list(prompts))["input_ids"]
        return cls(table, settings, rows, sum(map(len, counted)) / len(counted))

    @property
    def folder(self) -> Path:
        return Path(self.settings.output_dir)

    @property
    def sizes(self) -> list[int | None]:
        """The numbers of training rows that are compared; None for all."""
        return train_sizes(self.settings, self.rows["train"])

    @cached_property
    def planned(self) -> Counter[Kind]:
        """How many runs of each kind its comparison needs."""
        runs = planned_runs(self.settings, self.sizes)
        return Counter((run.method, run.size if _trains(run.method) else None) for run in runs)

    def done(self) -> list[RunResult]:
        """The runs that are done, those of other tables in the same folder left out."""
        return [run for method in self.settings.compared_methods() for run in self.done_of(method)]

    def done_of(self, method: ComparedMethod) -> Iterator[RunResult]:
        """The runs of a method that are done."""
        rates = (*self.settings.rates(), None)
        for run in finished_runs(self.folder / RUNS / method.slug):
            told = run.run
            is_of_size = not method.trains or told.train_rows in self.sizes
            if told.seed < self.settings.seeds and told.learning_rate in rates and is_of_size:
                yield run

    def left(self) -> Counter[Kind]:
        """How many runs of each kind are not done."""
        return self.planned - Counter((run.run.method, run.run.train_rows) for run in self.done())

    def work(self, kind: Kind) -> float:
        """What a run costs, in tokens of training."""
        method, size = kind
        test = self.rows["test"] * _FORWARD
        if not _trains(method):
            return test * self.tokens
        settings = settings_at(self.settings, size, self.rows["train"])
        trained = settings.max_steps * settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        validations = 1 + settings.max_steps // settings.eval_steps
        return (trained + validations * self.rows["validation"] * _FORWARD + test) * self.tokens


def _trains(method: str) -> bool:
    return ComparedMethod.parse(method).trains
