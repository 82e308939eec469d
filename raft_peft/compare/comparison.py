"""Which method is best on your data? Trains them side by side and writes a table, pictures and predictions."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from datasets import DatasetDict
from tqdm.auto import tqdm

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.report import write_report
from raft_peft.compare.results import RunResult, best_rate, finished_runs
from raft_peft.compare.rows import check_dataset, digest, kept_rows, labels_of, load_rows
from raft_peft.compare.run import COMPARISON, RESULT, Run, execute
from raft_peft.compare.settings import EXTENSIBLE, CompareSettings
from raft_peft.grid import NumberGrid
from raft_peft.methods.saved_folder import check_there_is
from raft_peft.tasks import get_task

DATA, RUNS, LOG, TABLE = "data", "runs", "log.txt", "table.md"

AnyGrid = Iterable[float] | Mapping[float, str] | NumberGrid


def compare_methods(settings: CompareSettings, dataset: DatasetDict | None = None, grid: AnyGrid | None = None) -> str:
    """Train and test every method, and write what came of it into `settings.output_dir`.

    Each method tries every learning rate with the first seed and takes the one with the lowest validation RMSE for the
    other seeds. Each run is tested at its best step by validation RMSE, or its last. Runs that are done already are
    not done again; one that fails is reported and leaves the others be. Several tasks have a folder each.

    Args:
        settings: what is compared, and how.
        dataset: `train`, `validation` and `test`, of `prompt` and `label`, in place of a task or of files.
        grid: its numbers, in place of the task's or of `settings.grid`.

    Returns:
        The table as Markdown, which is also written, as `table.md` and `table.csv`, beside `predictions/`, `pictures/`
        and `runs/`.

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
    if len(tasks) < 2:
        return _compare(*comparisons[0])
    tables = [f"## {task}\n\n{_compare(*one)}" for task, one in zip(tasks, comparisons, strict=True)]
    text = "\n".join(tables)
    (Path(settings.output_dir) / TABLE).write_text(text, encoding="utf-8")
    return text


def _opened(
    settings: CompareSettings, dataset: DatasetDict | None, grid: AnyGrid | None
) -> tuple[CompareSettings, NumberGrid, DatasetDict]:
    """A comparison on one dataset, whose folder holds its rows and settings."""
    found = _grid_of(settings, dataset, grid)
    data = kept_rows(load_rows(settings) if dataset is None else dataset, settings)
    folder = Path(settings.output_dir)
    _open(folder, settings, found, data)
    if not (folder / DATA).is_dir():
        unfinished = folder / f"{DATA}.unfinished"
        data.save_to_disk(str(unfinished))
        unfinished.rename(folder / DATA)
    return settings, found, data


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


def _compare(settings: CompareSettings, grid: NumberGrid, data: DatasetDict) -> str:
    """Do the runs that are not done, and write the report."""
    folder = Path(settings.output_dir)
    methods = settings.compared_methods()
    planned = sum(_planned_runs(method, settings) for method in methods)
    failures: dict[str, str] = {}
    with tqdm(total=planned, unit="run") as progress:
        for method in methods:
            progress.set_description(method.label)
            for rate, seed in _rates_at_seed_0(method, settings):
                _run(folder, settings, grid, method, rate, seed, failures)
                progress.update()
            rate = best_rate(finished_runs(folder / RUNS / method.slug))
            for seed in range(1, settings.seeds if method.is_random else 1):
                if rate is not None or not method.trains:
                    _run(folder, settings, grid, method, rate, seed, failures)
                progress.update()

    results = {method.label: finished_runs(folder / RUNS / method.slug) for method in methods}
    return write_report(folder, settings, results, failures, train_labels=labels_of(data["train"]))


def _open(folder: Path, settings: CompareSettings, grid: NumberGrid, data: DatasetDict) -> None:
    """Begin a comparison, or make sure that the folder holds this one."""
    fixed: dict[str, Any] = {key: value for key, value in asdict(settings).items() if key not in EXTENSIBLE}
    fixed["grid"] = [list(pair) for pair in grid]
    fixed["rows"] = {split: len(rows) for split, rows in data.items()}
    fixed["digest"] = {split: digest(rows) for split, rows in data.items()}
    path = folder / COMPARISON
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in fixed if found.get(key) != fixed[key]]
        if other:
            raise ValueError(
                f"{folder} holds a comparison with another {', '.join(other)}: {found.get(other[0])!r}, not "
                f"{fixed[other[0]]!r}. Its runs cannot be continued. Choose another `output_dir`, or delete this one."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")


def _rates_at_seed_0(method: ComparedMethod, settings: CompareSettings) -> list[tuple[float | None, int]]:
    return [(rate, 0) for rate in settings.rates()] if method.trains else [(None, 0)]


def _planned_runs(method: ComparedMethod, settings: CompareSettings) -> int:
    return len(_rates_at_seed_0(method, settings)) + (settings.seeds - 1 if method.is_random else 0)


def _run(
    folder: Path,
    settings: CompareSettings,
    grid: NumberGrid,
    method: ComparedMethod,
    rate: float | None,
    seed: int,
    failures: dict[str, str],
) -> None:
    """Carry out one run, unless it is done."""
    name = f"seed{seed}" if rate is None else f"lr{rate:g}-seed{seed}"
    run_folder = folder / RUNS / method.slug / name
    if (run_folder / RESULT).is_file():
        return
    Run(
        comparison=asdict(settings),
        grid=list(grid if method.grid is None else method.grid),
        data=str(folder / DATA),
        method=method.label,
        seed=seed,
        learning_rate=rate,
    ).save(run_folder)
    reason = (_do_here if settings.one_process else _do_in_process)(run_folder)
    if reason is not None:
        failures[f"{method.label}, {name}"] = reason
        tqdm.write(f"{method.label}, {name} failed: {reason} (see {run_folder / LOG})")
        return
    result = RunResult.load(run_folder)
    time = "" if result.train_seconds is None else f", trained {result.train_seconds / 60:.1f} minutes"
    tqdm.write(
        f"{method.label}, {name}: RMSE {result.metrics['rmse']:.3f}, Pearson {result.metrics['pearson']:.3f}{time}"
    )


def _do_in_process(folder: Path) -> str | None:
    """Carry out a run in a process of its own. Returns why it failed, if it did."""
    with (folder / LOG).open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "raft_peft.compare.run", str(folder)]
        process = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if process.returncode == 0:
        return None
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the process ended with code {process.returncode}"


def _do_here(folder: Path) -> str | None:
    """Carry out a run in this process. Returns why it failed, if it did."""
    with (folder / LOG).open("w", encoding="utf-8") as log, _written_to(log):
        try:
            execute(folder)
        # A run that fails leaves the others alone, whatever the reason.
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _written_to(log: TextIO) -> Iterator[None]:
    """For the time of a `with` block, write to a file what would be printed or logged on the console."""
    loggers = (logging.getLogger(name) for name in (None, "transformers", "datasets"))
    handlers = [one for logger in loggers for one in logger.handlers if type(one) is logging.StreamHandler]
    before = [(handler, handler.setStream(log)) for handler in handlers]
    try:
        with redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        for handler, stream in before:
            if stream is not None:
                handler.setStream(stream)
