"""Folders of a comparison and its runs as they are when all is done, written by hand, without a model."""

import csv
import json

import numpy as np

from raft_peft.compare.results import RunResult
from raft_peft.compare.run import Run
from raft_peft.metrics import regression_metrics

GRID = (0.0, 1.0, 2.0)
PROBS = ((0.2, 0.3, 0.1), (0.0, 0.2, 0.7))


def begin(folder, *, train_rows=8, test_rows=2):
    """The file that says what a comparison is of."""
    told = {"rows": {"train": train_rows, "test": test_rows}, "grid": [(y, str(y)) for y in GRID]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(told))


def write_columns(path, columns):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])


def made_up_run(
    folder,
    *,
    method="raft",
    seed=0,
    rate=1e-3,
    validation=1.0,
    probs=PROBS,
    labels=(1.0, 2.0),
    predictions=None,
    crps=None,
    train_rows=None,
    curve=((0, 10, 20), (4.0, 1.01, 1.0)),
    cost=60.0,
    **metrics,
):
    """A run with these predictions, or else the means of these probabilities; `cost` in seconds, and in tokens."""
    Run({}, [(y, str(y)) for y in GRID], "data", method, seed, rate, train_rows).save(folder)
    p = np.array(probs)
    numbers = p @ GRID if predictions is None else np.asarray(predictions)
    distribution = {f"p({y:g})": p[:, i] for i, y in enumerate(GRID)} if predictions is None else {}
    of_rows = {} if crps is None else {"crps": crps}
    write_columns(folder / "predictions.csv", {"label": labels, "prediction": numbers, **distribution, **of_rows})
    steps, errors = curve if np.isfinite(validation) and rate is not None else ((), ())
    spent = {} if cost is None else {name: [step * cost / 20 for step in steps] for name in ("seconds", "tokens")}
    write_columns(folder / "curve.csv", {"step": steps, "rmse": errors, **spent})
    found = {
        **(regression_metrics(numbers, labels) if np.isfinite(validation) else {}),
        "validation_rmse": validation,
        "train_seconds": None if rate is None else 60.0,
        "peak_memory_bytes": 2**30,
        "device": "cpu",
        **({} if cost is None or rate is None else {"train_tokens": cost}),
        **metrics,
    }
    (folder / "result.json").write_text(json.dumps(found))
    return RunResult.load(folder)
