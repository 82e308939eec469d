"""Predict a number for each row of a large dataset with `datasets.map`, a batch at a time.

    python examples/predict_with_datasets.py --model stars-raft --data_files "reviews/*.jsonl" --output stars.parquet

Reads JSON Lines, CSV or Parquet with a `prompt` in each row (text, or a list of chat messages) and writes the rows
with their `prediction` as Parquet. The rows are memory-mapped from disk, so their number does not matter. With several
GPUs there is a process for each, with a model of its own. A run that was stopped starts from the
beginning. On one GPU, `raft-peft predict` continues instead.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import multiprocess  # type: ignore[import-untyped]
import numpy as np
import torch
from datasets import load_dataset

from raft_peft import RegressionPredictor

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@functools.cache
def predictor_on(device: str, model: str) -> RegressionPredictor:
    """The predictor of this process, loaded when it meets its first batch."""
    return RegressionPredictor.from_pretrained(model, device_map={"": device})


def predict(prompts: Sequence[Any], rank: int | None, model: str) -> dict[str, np.ndarray]:
    """The new column, for one batch of rows."""
    gpus = torch.cuda.device_count()
    device = f"cuda:{(rank or 0) % gpus}" if gpus else "cpu"
    return {"prediction": predictor_on(device, model).predict(prompts, show_progress=False)}


def main(model: str, data_files: str, output: str, batch_size: int) -> None:
    suffix = Path(data_files).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{data_files!r} ends in {suffix!r}. Give files that end in one of {', '.join(FORMATS)}.")
    dataset = load_dataset(FORMATS[suffix], data_files=data_files, split="train")
    gpus = torch.cuda.device_count()
    predicted = dataset.map(
        predict,
        input_columns="prompt",
        with_rank=True,
        batched=True,
        batch_size=batch_size,
        fn_kwargs={"model": model},
        num_proc=gpus if gpus > 1 else None,
        load_from_cache_file=False,  # a model that was trained again has the same name
        desc="Predict",
    )
    predicted.to_parquet(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub repository of a trained model.")
    parser.add_argument("--data_files", required=True, help="A file or a pattern of files, of one format.")
    parser.add_argument("--output", required=True, help="The Parquet file to write.")
    parser.add_argument("--batch_size", type=int, default=4096, help="Rows that are sorted by length together.")
    multiprocess.set_start_method("spawn")  # CUDA does not survive a fork
    main(**vars(parser.parse_args()))
