"""Servers to ask, and no long pauses between attempts."""

import pytest
from support.completions_server import CompletionsServer

from raft_peft import RegressionPredictor
from raft_peft.prediction.remote import completions_api
from raft_peft.prediction.remote.predictor import RemoteRegressionPredictor

GRID = [0, 1, 2, 3, 4]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(completions_api, "_FIRST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def local(tiny_llama, tokenizer):
    return RegressionPredictor(tiny_llama, tokenizer, GRID)


@pytest.fixture
def serve(tiny_llama, tokenizer):
    """A function that starts a server, and gives it with a predictor that asks it."""
    running = []

    def start(like="vllm", *, model=tiny_llama, its_tokenizer=tokenizer, grid=GRID, server=None, **options):
        served = CompletionsServer(model, its_tokenizer, like, **(server or {}))
        context = served.running()
        running.append(context)
        options.setdefault("tokenizer", its_tokenizer)
        return served, RemoteRegressionPredictor(context.__enter__(), "stars", grid, **options)

    yield start
    for context in running:
        context.__exit__(None, None, None)
