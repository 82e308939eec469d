"""Which method is best on your data? Trains them side by side and writes a table, pictures and predictions."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.report import write_report
from raft_peft.compare.results import RunResult, best_rate, finished_runs
from raft_peft.compare.run import COMPARISON, RESULT, Run
from raft_peft.compare.settings import EXTENSIBLE, CompareSettings
from raft_peft.grid import NumberGrid
from raft_peft.tasks import get_task

DATA, RUNS, LOG = "data", "runs", "log.txt"


SPLITS = ("train", "validation", "test")


_COLUMNS = ("prompt", "label", "tools", "chat_template_kwargs")


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
    """Carry out one run in a process of its own, unless it is done."""
    name = f"seed{seed}" if rate is None else f"lr{rate:g}-seed{seed}"
    run_folder = folder / RUNS / method.slug / name
    if (run_folder / RESULT).is_file():
        return
    run = Run(
        comparison=asdict(settings),
        grid=list(grid),
        data=str(folder / DATA),
        method=method.label,
        seed=seed,
        learning_rate=rate,
    )
    run.save(run_folder)
    with (run_folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.run(
            [sys.executable, "-m", "raft_peft.compare.run", str(run_folder)], stdout=log, stderr=subprocess.STDOUT
        )
    if process.returncode != 0:
        lines = (run_folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"the process ended with code {process.returncode}"
        failures[f"{method.label}, {name}"] = reason
        tqdm.write(f"{method.label}, {name} failed: {reason} (see {run_folder / LOG})")
        return
    result = RunResult.load(run_folder)
    time = "" if result.train_seconds is None else f", trained {result.train_seconds / 60:.1f} minutes"
    tqdm.write(
        f"{method.label}, {name}: RMSE {result.metrics['rmse']:.3f}, Pearson {result.metrics['pearson']:.3f}{time}"
    )


def _grid(
    settings: CompareSettings,
    dataset: DatasetDict | None,
    grid: Iterable[float] | Mapping[float, str] | NumberGrid | None,
) -> NumberGrid:
    if (settings.task is None) == (dataset is None):
        raise ValueError("A comparison needs data once: set `task` to one of raft_peft.tasks, or pass `dataset`.")
    if dataset is not None:
        missing = [split for split in SPLITS if split not in dataset]
        if missing:
            raise ValueError(f"The dataset has no {', '.join(missing)}. It needs the splits {', '.join(SPLITS)}.")
        if grid is None:
            raise ValueError("A dataset of your own needs its grid. Pass grid=, such as grid=[1, 2, 3, 4, 5].")
    return NumberGrid(get_task(str(settings.task)).grid if grid is None else grid)


def _open(folder: Path, settings: CompareSettings, grid: NumberGrid, data: DatasetDict) -> None:
    """Begin a comparison, or make sure that the folder holds this one."""
    fixed: dict[str, Any] = {key: value for key, value in asdict(settings).items() if key not in EXTENSIBLE}
    fixed["grid"] = [list(pair) for pair in grid]
    fixed["rows"] = {split: len(rows) for split, rows in data.items()}
    fixed["digest"] = {split: _digest(rows) for split, rows in data.items()}
    path = folder / COMPARISON
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in fixed if found.get(key) != fixed[key]]
        if other:
            raise ValueError(
                f"{folder} holds a comparison with another {', '.join(other)}: {found.get(other[0])!r}, not "
                f"{fixed[other[0]]!r}. Its runs cannot be gone on with. Choose another output_dir, or delete it."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")


def _rows(settings: CompareSettings, dataset: DatasetDict | None) -> DatasetDict:
    """The rows of every run."""
    if dataset is None:
        dataset = get_task(str(settings.task)).load(settings.task_path, settings.split_seed)
    limits = {
        "train": settings.max_train_samples,
        "validation": settings.max_eval_samples,
        "test": settings.max_test_samples,
    }
    kept = {}
    for split, limit in limits.items():
        missing = {"prompt", "label"} - set(dataset[split].column_names)
        if missing:
            raise ValueError(f"The {split} split has no column {' and '.join(sorted(missing))}. Rename its columns.")
        rows = dataset[split].select_columns([name for name in _COLUMNS if name in dataset[split].column_names])
        kept[split] = rows if limit is None else rows.select(range(min(limit, len(rows))))
        bad = [row for row, label in enumerate(kept[split]["label"]) if not _is_number(label)]
        if bad:
            raise ValueError(f"The {split} split has labels that are no finite numbers, in the rows {bad[:5]}.")
    return DatasetDict(kept)


def _is_number(label: Any) -> bool:
    return isinstance(label, Real) and math.isfinite(label)


def _digest(rows: Dataset) -> str:
    """The same for the same rows, so that a comparison does not go on with others."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def compare_methods(
    settings: CompareSettings,
    dataset: DatasetDict | None = None,
    grid: Iterable[float] | Mapping[float, str] | NumberGrid | None = None,
) -> str:
    """Train and test every method, and write what came of it into `settings.output_dir`.

    Each method tries every learning rate with the first seed and takes the one with the lowest validation RMSE for the
    other seeds. Each run keeps its best step by validation RMSE and is tested there. Runs that are done already are
    not done again; one that fails is reported and leaves the others be.

    Args:
        settings: what is compared, and how.
        dataset: `train`, `validation` and `test`, of `prompt` and `label`, in place of a task.
        grid: its numbers, in place of the task's.

    Returns:
        The table as Markdown, which is also written, as `table.md` and `table.csv`, beside `predictions/`, `pictures/`
        and `runs/`.

    Raises:
        ValueError: no data or two; the folder holds another comparison; no run gave a result.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("The pictures of a comparison need matplotlib. Run: pip install 'raft-peft[plots]'")
    folder = Path(settings.output_dir)
    grid = _grid(settings, dataset, grid)
    data = _rows(settings, dataset)
    _open(folder, settings, grid, data)
    if not (folder / DATA).is_dir():
        unfinished = folder / f"{DATA}.unfinished"
        data.save_to_disk(str(unfinished))
        unfinished.rename(folder / DATA)

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
    return write_report(folder, settings, results, failures)
