"""The datasets of a run: encoded as `Trainer` asks for them, and what their rows tell of all others."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset

from raft_peft.data.dataset import ENCODED_COLUMNS, check_read_once, encode_dataset, first_row, spread_rows
from raft_peft.data.labels import LabelColumn
from raft_peft.data.limits import ModelLimits
from raft_peft.data.preferences import PreferenceWriter, may_prefer
from raft_peft.data.prompt_shape import prompt_shape
from raft_peft.data.prompts import PromptEncoder
from raft_peft.data.questions.row import QUESTIONS
from raft_peft.data.reasoning.reasonings import REASONING, ScorePrefix
from raft_peft.data.rows import as_dataset
from raft_peft.grid import NumberGrid
from raft_peft.methods import METHODS
from raft_peft.methods.preference_losses import check_preferences
from raft_peft.methods.renormalization import renormalizes
from raft_peft.methods.table import needs_labels_within_grid
from raft_peft.training.config import RegressionAwareConfig

AnyDataset: TypeAlias = Dataset | IterableDataset
EvalDataset: TypeAlias = AnyDataset | dict[str, AnyDataset]

# So many prompts tell what all have in common. Fewer than the least could have somebody's own words in common.
_PROMPTS_COMPARED, _FEWEST_PROMPTS = 64, 8


class RunDatasets:
    """Encodes the datasets of a run, each once.

    Attributes:
        columns: of the encoded rows.
        encoder: encodes the prompts; there from the first call of `open` on.
        grid_token_ids: the tokens of each number in the first row that was encoded; None before.
        template: writes the prompts; None where they come as they are.
        prompt_shape: what the prompts of the first dataset have in common, as [`prompt_shape`] gives it.
        score_prefix: the words between a reasoning and its number; None where rows have no reasoning.
        stand_in: a dataset of one encoded row, for what demands a dataset to train on where there is none.
    """

    columns: Sequence[str] = ENCODED_COLUMNS
    encoder: PromptEncoder
    grid_token_ids: tuple[tuple[int, ...], ...] | None = None
    prompt_shape: Any = None
    score_prefix: ScorePrefix | None = None

    def __init__(self, grid: NumberGrid, args: RegressionAwareConfig, loss: Any = None):
        self._grid = grid
        self._args = args
        self._labels_within_grid = needs_labels_within_grid(args, loss)
        self.template = args.prompts_template()
        self.stand_in = Dataset.from_dict({"input_ids": [[0]], "grid_token_ids": [[[0]] * len(grid)], "label": [0.0]})
        self._limits = ModelLimits()
        self._encoded_here: weakref.WeakSet[Any] = weakref.WeakSet([self.stand_in])

    def open(self, tokenizer: Any, processing_class: Any) -> None:
        """Make the encoder, at the first call, when `SFTTrainer` has the tokenizer."""
        if not hasattr(self, "encoder"):
            self.encoder = PromptEncoder(
                tokenizer,
                self._grid,
                separator=self._args.separator,
                max_length=self._args.max_length,
                number_end=self._args.end_of_numbers(tokenizer),
                processor=processing_class,
                score_prefix=self.score_prefix,
            )

    def encode(self, dataset: AnyDataset, name: str, *, require_label: bool = True) -> AnyDataset:
        """Encode a dataset, unless it was encoded here.

        Raises:
            ValueError: as [`encode_dataset`].
        """
        if isinstance(dataset, Dataset | IterableDataset) and dataset in self._encoded_here:
            return dataset
        dataset = as_dataset(dataset, name, self._args.label_column)
        if name != "train":
            workers = self._args.dataloader_num_workers
            check_read_once(dataset, name, processes=self._args.world_size, workers=workers)
        preferences = self._preferences_in(dataset, name)
        if self.template is not None and preferences is None:
            dataset = self.template.write_all(dataset, f"The {name} dataset")
        with self._args.main_process_first(desc=f"tokenizing the {name} dataset"):
            encoded = encode_dataset(
                dataset,
                name,
                self.encoder,
                label_column=self._args.label_column,
                require_label=require_label,
                method=METHODS[self._args.method],
                labels_within_grid=self._labels_within_grid,
                # An evaluation counts every row once.
                weight_by_ratings=self._args.weight_by_ratings and name == "train",
                renormalize=renormalizes(self._args, self._grid),
                num_proc=self._args.dataset_num_proc,
                limits=self._limits,
                preferences=preferences,
            )
        self._encoded_here.add(encoded)
        if self.prompt_shape is None:
            rows = spread_rows(dataset, _PROMPTS_COMPARED)
            written = rows if preferences is None else [one for row in rows for one in preferences(row)]
            prompts = [row.get("prompt") for row in written]
            self.prompt_shape = prompt_shape(prompts) if len(prompts) >= _FEWEST_PROMPTS else None
        if self.grid_token_ids is None:
            self.grid_token_ids = self._grid_token_ids(next(iter(encoded)))
        return encoded

    def _grid_token_ids(self, row: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
        return tuple(map(tuple, row["grid_token_ids"]))

    def _preferences_in(self, dataset: AnyDataset, name: str) -> PreferenceWriter | None:
        """What writes the prompts of a dataset with preferences; None for one without.

        Raises:
            ValueError: the method cannot learn from preferences, or a stream of them is read by several processes.
        """
        if not may_prefer(_columns_of(dataset), self._args.label_column):
            return None
        check_preferences(self._args, name)
        if self.score_prefix is not None:
            raise ValueError(
                f"The {name} dataset has preferences, and the run trains on reasonings before scores: which of the "
                "two texts a reasoning is of is not known. Train on one of them, and leave the other columns out."
            )
        if self._args.world_size > 1 and isinstance(dataset, IterableDataset):
            raise ValueError(
                f"The {name} dataset is a stream (IterableDataset) of preferences, whose batches would be divided "
                f"among {self._args.world_size} processes between the prompts of a pair. Read it into a dataset: "
                f"Dataset.from_list(list({name}_stream))."
            )
        return PreferenceWriter(self.template)

    def form_of_prompts(self) -> dict[str, Any]:
        """How the prompts were written, and what they had in common, as [`RaftConfig`] keeps it."""
        template = None if self.template is None else self.template.template
        prefix = None if self.score_prefix is None else self.score_prefix.text
        return {"prompt_template": template, "prompt_shape": self.prompt_shape, "score_prefix": prefix}

    def check_fits(self, model: Any) -> None:
        """Refuse rows that the model cannot take: those encoded before it was there, and from now on all.

        Raises:
            ValueError: a row has more tokens than the model has positions, or tokens that it does not have.
        """
        self._limits.learn(model)
        for dataset in self._encoded_here:
            if isinstance(dataset, Dataset):
                self._limits.check_dataset(dataset)


def ask_questions(dataset: Any) -> bool:
    """Whether the rows of a dataset, or of several by name, have typed questions."""
    return _have_column(dataset, QUESTIONS)


def have_reasonings(dataset: Any, args: Any) -> bool:
    """Whether the rows of a dataset, or of several by name, have reasonings before their scores.

    A column that a prompt template names is part of the prompt.
    """
    if getattr(args, "score_prefix", None) is not None:
        return True
    template = getattr(args, "prompt_template", None)
    return f"{{{REASONING}}}" not in str(template) and _have_column(dataset, REASONING)


def _have_column(dataset: Any, name: str) -> bool:
    if isinstance(dataset, Mapping):
        return any(_have_column(one, name) for one in dataset.values())
    return isinstance(dataset, Dataset | IterableDataset) and name in _columns_of(dataset)


def hold_preferences(dataset: Any, label_column: str) -> bool:
    """Whether the rows of a dataset, or of several by name, may have `chosen` and `rejected`."""
    if isinstance(dataset, Mapping):
        return any(hold_preferences(one, label_column) for one in dataset.values())
    return isinstance(dataset, Dataset | IterableDataset) and may_prefer(_columns_of(dataset), label_column)


def have_labels(dataset: AnyDataset, label_column: str) -> bool:
    """Whether the rows of a dataset may have labels."""
    return LabelColumn.of(label_column).is_in(_columns_of(dataset))


def _columns_of(dataset: AnyDataset) -> list[str]:
    return dataset.column_names or list(next(iter(dataset), {}))


def check_not_empty(train_dataset: AnyDataset | None, eval_dataset: EvalDataset | None) -> None:
    """Raise a ValueError that names what is no dataset, or has no rows, before a model is loaded for it."""
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    named: Iterable[tuple[str, Any]] = {"train": train_dataset, **evaluated}.items()
    for name, dataset in named:
        if isinstance(dataset, Dataset | IterableDataset):
            first_row(dataset, name)
        elif dataset is not None:
            raise ValueError(
                f"The {name} dataset is a {type(dataset).__name__}, and the trainer takes a datasets.Dataset or "
                f"IterableDataset. {_way_to_dataset(dataset)}"
            )


def _way_to_dataset(rows: Any) -> str:
    if isinstance(rows, Mapping):
        return f"Pass one of {', '.join(f'dataset[{name!r}]' for name in rows)}."
    if hasattr(rows, "to_pandas") or hasattr(rows, "itertuples"):
        return "Make one of the table: Dataset.from_pandas, from_polars, or datasets.Dataset(arrow_table)."
    return "Make one of the rows: Dataset.from_list([{'prompt': ..., 'label': ...}, ...])."
