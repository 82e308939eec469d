"""Which method is best on your data? Trains them side by side and writes a table, pictures and predictions."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from tqdm.auto import tqdm

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.execution import LOG, carry_out
from raft_peft.compare.leaks import Leak, find_leaks
from raft_peft.compare.overview import write_overview
from raft_peft.compare.report import write_report
from raft_peft.compare.results import RunResult, best_rate, finished_runs
from raft_peft.compare.rows import check_dataset, digest, kept_rows, labels_of, load_rows
from raft_peft.compare.run import COMPARISON, RESULT, Run
from raft_peft.compare.schedule import (
    Planned,
    Progress,
    later_runs,
    planned_runs,
    rates_at_first,
    settings_at,
    train_sizes,
)
from raft_peft.compare.settings import EXTENSIBLE, CompareSettings
from raft_peft.grid import NumberGrid
from raft_peft.messages import warn
from raft_peft.methods.saved_folder import check_there_is
from raft_peft.tasks import get_task

logger = logging.getLogger(__name__)

DATA, RUNS = "data", "runs"

AnyGrid = Iterable[float] | Mapping[float, str] | NumberGrid


def compare_methods(settings: CompareSettings, dataset: DatasetDict | None = None, grid: AnyGrid | None = None) -> str:
    """Train and test every method, and write what came of it into `settings.output_dir`.

    Each method tries every learning rate with the first seed and takes the one with the lowest validation RMSE for the
    other seeds and for fewer training rows. Each run is tested at its best step by validation RMSE, or its last. Runs
    that are done already are not done again; one that fails is reported and leaves the others be. Several tasks have a
    folder each, and one that fails leaves the others be too.

    Args:
        settings: what is compared, and how.
        dataset: `train`, `validation` and `test`, of `prompt` and `label`, in place of a task or of files.
        grid: its numbers, in place of the task's or of `settings.grid`.

    Returns:
        The tables as Markdown, which are also written as `table.md`, beside `predictions/`, `pictures/` and `runs/`.
        `table.csv` has a row for each line of the tables and number of training rows. `table.json` has these rows
        under `summary`, each run by itself under `runs`, and under `differences` how each line differs from the
        `baseline`: of each metric the `difference`, the ends `low` and `high` of its interval, and the `verdict`. For
        several tasks, those in the folder above hold all: `table.csv` has a column `task`, and `table.json` the one
        of each task under `tasks`.

    Raises:
        ValueError: no data or two; the folder holds another comparison; no run gave a result.
        FileNotFoundError: there is no such model or file.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("The pictures of a comparison need matplotlib. Run: pip install 'raft-peft[plots]'")
    tasks = settings.tasks() if dataset is None else []
    if dataset is not None and (settings.task is not None or settings.train_file is not None):
        raise ValueError("A comparison takes one source of data: pass `dataset`, or set `task` or `train_file`.")
    if dataset is None and not tasks and settings.train_file is None:
        raise ValueError(
            "A comparison needs data: set `task` to one of raft_peft.tasks, set `train_file`, or pass `dataset`."
        )
    check_there_is(settings.model, {})
    if settings.encoder is not None:
        check_there_is(settings.encoder, {})
    named: list[str | None] = [*tasks] or [None]
    paths = settings.task_paths() if tasks else [None]
    folders = [settings.output_dir]
    if len(tasks) > 1:
        folders = [str(Path(settings.output_dir) / task) for task in tasks]
    # All are opened before the first is begun, so that what is wrong with the last is not found hours later.
    comparisons = [
        _opened(replace(settings, task=task, task_path=path, output_dir=folder), dataset, grid)
        for task, path, folder in zip(named, paths, folders, strict=True)
    ]
    progress = Progress(run for one in comparisons for run in one.planned())
    if len(tasks) < 2:
        return _compare(comparisons[0], progress)
    texts, failures = {}, {}
    for task, one in zip(tasks, comparisons, strict=True):
        try:
            texts[task] = _compare(one, progress)
        # A task that fails leaves the others alone, whatever the reason.
        except Exception as error:
            traceback.print_exc()
            failures[task] = f"{type(error).__name__}: {error}"
    return write_overview(Path(settings.output_dir), texts, failures)


@dataclass
class _Opened:
    """A comparison on one dataset, whose folder holds its rows and settings.

    Attributes:
        settings: of it, with one task at most.
        grid: of the methods that have none of their own.
        data: the rows of every run.
        leaks: between test and training rows.
    """

    settings: CompareSettings
    grid: NumberGrid
    data: DatasetDict
    leaks: Sequence[Leak]

    @property
    def folder(self) -> Path:
        return Path(self.settings.output_dir)

    @property
    def sizes(self) -> list[int | None]:
        return train_sizes(self.settings, len(self.data["train"]))

    def run_folder(self, method: ComparedMethod, size: int | None, rate: float | None, seed: int) -> Path:
        """The folder of a run. What is not trained is the same for any number of training rows."""
        rows = f"rows{size}-" if size is not None and method.trains else ""
        rates = "" if rate is None else f"lr{rate:g}-"
        return self.folder / RUNS / method.slug / f"{rows}{rates}seed{seed}"

    def planned(self) -> Iterable[Planned]:
        return planned_runs(self.settings, self.sizes)


def _opened(settings: CompareSettings, dataset: DatasetDict | None, grid: AnyGrid | None) -> _Opened:
    """Open the folder of a comparison, and say what is odd about its rows."""
    found = _grid_of(settings, dataset, grid)
    data = kept_rows(load_rows(settings) if dataset is None else dataset, settings)
    data, leaks = find_leaks(data, drop=settings.drop_leaks)
    folder = Path(settings.output_dir)
    _open(folder, settings, found, data)
    for leak in leaks:
        cure = "" if leak.dropped else " Remove them with `drop_leaks=True`, or repair the splits."
        warn(logger, f"{'' if settings.task is None else f'{settings.task}: '}{leak}{cure}")
    all_rows = [size for size in settings.sizes() if size is not None and size >= len(data["train"])]
    if all_rows:
        named = ", ".join(map(str, all_rows))
        tqdm.write(f"{named} training rows: there are {len(data['train'])}, and all are taken.")
    if not (folder / DATA).is_dir():
        unfinished = folder / f"{DATA}.unfinished"
        data.save_to_disk(str(unfinished))
        unfinished.rename(folder / DATA)
    return _Opened(settings, found, data, leaks)


def _grid_of(settings: CompareSettings, dataset: DatasetDict | None, grid: AnyGrid | None) -> NumberGrid:
    """The grid of the methods that have none of their own.

    Raises:
        ValueError: there is none, or two, or a method cannot answer with it.
    """
    own = settings.own_grid()
    if grid is not None and own is not None:
        raise ValueError("The grid is given twice. Pass `grid` to compare_methods, or set it in the settings.")
    if grid is not None:
        own = NumberGrid(grid)
    if own is None and settings.task is None:
        raise ValueError("A dataset of your own needs its grid. Pass `grid`, such as grid=[1, 2, 3, 4, 5].")
    found = NumberGrid(get_task(str(settings.task)).grid) if own is None else own
    for method in settings.compared_methods():
        method.check_grid(found)
    if dataset is not None:
        check_dataset(dataset)
    return found


def _compare(opened: _Opened, progress: Progress) -> str:
    """Do the runs that are not done, and write the report."""
    methods = opened.settings.compared_methods()
    failures: dict[str, str] = {}
    *smaller, largest = opened.sizes

    def run(method: ComparedMethod, size: int | None, rate: float | None, seed: int) -> None:
        planned = Planned(opened.settings.task, method.label, size)
        folder = opened.run_folder(method, size, rate, seed)
        if (folder / RESULT).is_file():
            _check_server(folder, method, opened.settings)
            progress.finish(planned, RunResult.load(folder).seconds)
            return
        reason = _run(opened, folder, method, size, rate, seed)
        if reason is not None:
            failures[f"{method.label}, {folder.name}"] = reason
        progress.finish(planned, RunResult.load(folder).seconds if reason is None else None)
        tqdm.write(str(progress))

    for method in methods:
        for rate in rates_at_first(method, opened.settings):
            run(method, largest, rate, 0)
        best = best_rate(finished_runs(opened.folder / RUNS / method.slug), largest)
        for size, seed in later_runs(method, opened.settings, smaller, largest):
            if best is not None or not method.trains:
                run(method, size, best, seed)
            else:
                progress.finish(Planned(opened.settings.task, method.label, size), None)
    results = {method.label: finished_runs(opened.folder / RUNS / method.slug) for method in methods}
    return write_report(
        opened.folder,
        opened.settings,
        results,
        failures,
        train_labels=labels_of(opened.data["train"]),
        leaks=opened.leaks,
    )


def _check_server(folder: Path, method: ComparedMethod, settings: CompareSettings) -> None:
    """Refuse the result of a run that asked another server.

    Raises:
        ValueError: it did.
    """
    asked = RunResult.load(folder).run.comparison.get("base_url")
    if method.is_served and asked != settings.base_url:
        raise ValueError(
            f"{folder} holds what the server {asked} gave for {method.label!r}, and not {settings.base_url}. Choose "
            "another `output_dir`, or delete this folder."
        )


def _open(folder: Path, settings: CompareSettings, grid: NumberGrid, data: DatasetDict) -> None:
    """Begin a comparison, or make sure that the folder holds this one."""
    fixed: dict[str, Any] = {key: value for key, value in asdict(settings).items() if key not in EXTENSIBLE}
    fixed["grid"] = [list(pair) for pair in grid]
    fixed["rows"] = {split: len(rows) for split, rows in data.items()}
    fixed["digest"] = {split: digest(rows) for split, rows in data.items()}
    path = folder / COMPARISON
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        # A setting that a folder of an earlier version does not name was not there, and did what its default does.
        found = {**{one.name: one.default for one in fields(settings)}, **told}
        other = [key for key in fixed if found.get(key) != fixed[key]]
        if other:
            raise ValueError(
                f"{folder} holds a comparison with another {', '.join(other)}: {found.get(other[0])!r}, not "
                f"{fixed[other[0]]!r}. Its runs cannot be continued. Choose another `output_dir`, or delete this one."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")


def _run(
    opened: _Opened, folder: Path, method: ComparedMethod, size: int | None, rate: float | None, seed: int
) -> str | None:
    """Carry out one run. Returns why it failed, if it did."""
    settings = opened.settings
    Run(
        comparison=asdict(settings_at(settings, size, len(opened.data["train"]))),
        grid=list(opened.grid if method.grid is None else method.grid),
        data=str(opened.folder / DATA),
        method=method.label,
        seed=seed,
        learning_rate=rate,
        train_rows=size if method.trains else None,
    ).save(folder)
    name = f"{method.label}, {folder.name}"
    reason = carry_out(folder, one_process=settings.one_process)
    if reason is not None:
        tqdm.write(f"{name} failed: {reason} (see {folder / LOG})")
        return reason
    result = RunResult.load(folder)
    time = "" if result.train_seconds is None else f", trained {result.train_seconds / 60:.1f} minutes"
    tqdm.write(f"{name}: RMSE {result.metrics['rmse']:.3f}, Pearson {result.metrics['pearson']:.3f}{time}")
    return None
