"""A predictor of numbers behind a server, by the name of the server's API."""

from __future__ import annotations

from typing import Any

from raft_peft.methods.saved_folder import RaftConfig, check_there_is
from raft_peft.prediction.number_predictor import NumberPredictor
from raft_peft.prediction.remote.predictor import RemoteRegressionPredictor
from raft_peft.prediction.remote.served import ServedRegressionPredictor

PREDICT, COMPLETIONS = NUMBER_APIS = ("predict", "completions")


def open_numbers(
    base_url: str, model: str, api: str = PREDICT, *, tokenizer: str | None = None, grid: Any = None, **options: Any
) -> NumberPredictor:
    """The predictor that asks a server.

    Args:
        base_url, model: as for [`RemoteModel`].
        api: `"predict"` of raft-peft serve, or `"completions"` of vLLM, llama.cpp and others.
        tokenizer: for completions, the folder or Hub repository of the model's tokenizer, and of its grid where it was
            trained here; None for one of the name `model`.
        grid: for completions, the numbers; None for those that were saved.
        options: of [`ServedRegressionPredictor`] or [`RemoteRegressionPredictor`].

    Raises:
        ValueError: there is no such API, or no grid.
        ConnectionError: the server cannot be reached.
    """
    if api not in NUMBER_APIS:
        raise ValueError(f"`api={api}` predicts no numbers. Use {' or '.join(NUMBER_APIS)}.")
    if api == PREDICT:
        return ServedRegressionPredictor(base_url, model, **options)
    folder = model if tokenizer is None else tokenizer
    check_there_is(folder, {})
    if RaftConfig.find(folder, {}) is not None:
        given = options if grid is None else {**options, "grid": grid}
        return RemoteRegressionPredictor.from_saved(base_url, model, folder, **given)
    if grid is None:
        raise ValueError(
            f"{folder!r} was not saved with a grid. Set `grid`, such as 1,2,3,4,5, or name as `tokenizer` the folder "
            "that was trained."
        )
    return RemoteRegressionPredictor(base_url, model, grid, tokenizer=folder, **options)
