"""One run of a comparison, in a process of its own, so that its memory is its own and its failure too.

    python -m raft_peft.compare.run FOLDER [PARENT]

reads `settings.json` in the folder and writes `predictions.csv`, `curve.csv` and at last `result.json`. With the
process id of its parent, it ends when that does.
"""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, load_from_disk
from transformers import TrainerCallback, set_seed

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.rows import labels_of, nested_rows
from raft_peft.compare.settings import CompareSettings
from raft_peft.compare.trainers import trainer_of
from raft_peft.grid import NumberGrid, number_text
from raft_peft.metrics import DISTRIBUTION_METRICS, rail_metrics, regression_metrics
from raft_peft.prediction.evaluation import evaluate_rows
from raft_peft.prediction.remote.opening import PREDICT, open_numbers
from raft_peft.training.trainer import RegressionAwareTrainer

COMPARISON = "comparison.json"
SETTINGS, RESULT, PREDICTIONS, CURVE = "settings.json", "result.json", "predictions.csv", "curve.csv"


@dataclass
class Run:
    """What one run is told.

    Attributes:
        comparison: the settings of the comparison.
        grid: values and texts of the grid.
        data: folder of the dataset.
        method: label of the method.
        seed: of the weights that are new, the order of the rows, and what is drawn.
        learning_rate: None where nothing is trained.
        train_rows: how many rows it is trained on; None for all of them.
    """

    comparison: dict[str, Any]
    grid: list[tuple[float, str]]
    data: str
    method: str
    seed: int
    learning_rate: float | None
    train_rows: int | None = None

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Run:
        return cls(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))


class _Cost(TrainerCallback):
    """What training costs: seconds in its steps, without the evaluations between them, and tokens without padding.

    Attributes:
        seconds, tokens: so far.
        at_step: both, at each step that was validated.
    """

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self.at_step: dict[int, tuple[float, int]] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.monotonic() - self.started
        self.tokens = int(state.num_input_tokens_seen)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at_step[state.global_step] = self.seconds, self.tokens


def execute(folder: Path) -> None:
    """Carry out the run whose settings lie in the folder."""
    began = time.monotonic()
    run = Run.load(folder)
    method, settings = ComparedMethod.parse(run.method), CompareSettings(**run.comparison)
    dataset = load_from_disk(run.data)
    dataset["train"] = nested_rows(dataset["train"], run.train_rows, settings.split_seed)
    set_seed(run.seed)
    found = _ask(run, method, folder, dataset) if method.is_served else _train(run, method, folder, dataset)
    memory = None if method.is_served else _peak_memory()
    found |= {"seconds": time.monotonic() - began, "peak_memory_bytes": memory}
    # Written last and in one move: a folder with a result is whole.
    unfinished = folder / f"{RESULT}.unfinished"
    unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(folder / RESULT)


def _train(run: Run, method: ComparedMethod, folder: Path, dataset: DatasetDict) -> dict[str, Any]:
    """Train a model, where its method does, and test it. Returns what `result.json` holds of it."""
    settings, trains = CompareSettings(**run.comparison), method.trains
    cost = _Cost()
    trainer, test = trainer_of(run, dataset, folder, cost)
    trainer.args.include_num_input_tokens_seen = "non_padding"
    if trains:
        trainer.train()
    started = time.monotonic()
    output = trainer.predict(test)
    test_seconds = time.monotonic() - started

    labels = np.asarray(labels_of(dataset["test"]), dtype=np.float64)
    columns = _predictions(output, labels)
    distributions = trainer.evaluations["test"].distributions if isinstance(trainer, RegressionAwareTrainer) else None
    if distributions is not None:
        columns["crps"] = distributions.crps()
    _write_columns(folder / PREDICTIONS, columns)
    curve = [(entry["step"], entry["eval_rmse"]) for entry in trainer.state.log_history if "eval_rmse" in entry]
    costs = [cost.at_step.get(step, (math.nan, math.nan)) for step, _ in curve]
    of_curve = [(step, rmse, *spent) for (step, rmse), spent in zip(curve, costs, strict=True)]
    names = ("step", "rmse", "seconds", "tokens")
    _write_columns(folder / CURVE, {name: [point[place] for point in of_curve] for place, name in enumerate(names)})
    if settings.save_models and trains:
        trainer.save_model(str(folder / "model"))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    return {
        **regression_metrics(columns["prediction"], labels),
        **(rail_metrics(columns["rail"], labels) if "rail" in columns else {}),
        **_of_distribution(output.metrics or {}),
        "validation_rmse": _validated(curve, settings.keep),
        "train_rows": len(dataset["train"]) if trains else None,
        "train_tokens": cost.tokens if trains else None,
        "train_seconds": cost.seconds if trains else None,
        "test_seconds": test_seconds,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "parameters_trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) if trains else 0,
    }


def _ask(run: Run, method: ComparedMethod, folder: Path, dataset: DatasetDict) -> dict[str, Any]:
    """Ask a server about the test rows. Returns what `result.json` holds of it."""
    asked = {"tokenizer": run.comparison["model"], "grid": NumberGrid(dict(run.grid)), **method.options}
    if asked.get("api", PREDICT) == PREDICT:
        asked = method.options
    predictor = open_numbers(run.comparison["base_url"], **asked)
    started = time.monotonic()
    found = evaluate_rows(predictor, dataset["test"], show_progress=False)
    distributions = found.distributions
    columns: dict[str, Any] = {"label": found.labels, "prediction": found.predictions.astype(np.float64)}
    if distributions is not None:
        texts = [number_text(value) for value in distributions.values.tolist()]
        probs = np.exp(distributions.log_probs.astype(np.float64))
        columns |= {f"p({text})": column for text, column in zip(texts, probs.T.tolist(), strict=True)}
        columns |= {f"share({text})": column for text, column in zip(texts, distributions.label_shares.T, strict=True)}
        columns["crps"] = distributions.crps()
    _write_columns(folder / PREDICTIONS, columns)
    _write_columns(folder / CURVE, {"step": [], "rmse": [], "seconds": [], "tokens": []})
    not_trained = ("validation_rmse", "train_rows", "train_tokens", "train_seconds")
    return {
        **regression_metrics(columns["prediction"], found.labels),
        **{name: value for name, value in found.metrics.items() if name in DISTRIBUTION_METRICS},
        **dict.fromkeys(not_trained),
        "test_seconds": time.monotonic() - started,
        "device": "a server",
        "parameters_trained": 0,
    }


def _predictions(output: Any, labels: np.ndarray) -> dict[str, Any]:
    """The columns of `predictions.csv`."""
    numbers = np.asarray(output.predictions, dtype=np.float64).reshape(len(labels), -1)[:, 0]
    columns = {"label": labels, "prediction": numbers}
    if getattr(output, "rail", None) is not None:
        columns["rail"] = output.rail
    distribution = getattr(output, "distribution", None)
    if distribution is not None:
        texts = [number_text(value) for value in distribution.values.tolist()]
        columns |= {f"p({text})": column for text, column in zip(texts, distribution.probs.T.tolist(), strict=True)}
        if output.label_shares is not None:
            columns |= {f"share({text})": column for text, column in zip(texts, output.label_shares.T, strict=True)}
    return columns


def _of_distribution(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the distribution among those of the test; none where the method has none."""
    return {name: metrics[f"test_{name}"] for name in DISTRIBUTION_METRICS if f"test_{name}" in metrics}


def _validated(curve: Sequence[tuple[int, float]], keep: str) -> float | None:
    """The validation RMSE of the weights that are kept; None where nothing was trained."""
    trained = [rmse for step, rmse in curve if step > 0]
    if not trained:
        return None
    return trained[-1] if keep == "last" else float(np.nanmin([*trained, math.inf]))


def _peak_memory() -> int:
    """Bytes: of the accelerator where there is one, else the process's resident memory at its highest."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, where a new process inherits the ru_maxrss of the one that starts it
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def _write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def end_with(parent: int, *, every: float = 1.0) -> None:
    """End this process when its parent has ended, also where that was killed.

    Else it would go on, and the comparison, called again, would do the same run in the same folder.

    Args:
        parent: the process id of the parent.
        every: seconds between two looks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        end_with(int(sys.argv[2]))
    execute(Path(sys.argv[1]))
