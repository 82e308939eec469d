"""Options of commands that ask a model behind a server."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from raft_peft.cli.options import chosen_template, method_options, open_predictor, positive
from raft_peft.methods.fields import MethodFields

if TYPE_CHECKING:
    from raft_peft.prediction.number_predictor import NumberPredictor
    from raft_peft.prediction.remote.decisions import RemoteDecisions

PREDICT, COMPLETIONS, SYSTEMONE, DECISIONS = APIS = ("predict", "completions", "systemone", "decisions")
_CONNECTION = ("concurrency", "timeout", "max_retries")
# What a server has decided when it was started.
_OF_MODELS_HERE = (
    *("batch_size", "batch_tokens", "dtype", "autocast", "quantization", "attn_implementation", "revision"),
    "trust_remote_code",
)
_READING = ("grid", "separator", "score_prefix", "max_length", *(one.name for one in fields(MethodFields)))
_REFUSED: Mapping[str, tuple[str, ...]] = {
    PREDICT: _READING,
    COMPLETIONS: (),
    SYSTEMONE: ("question_template", *_READING),
    DECISIONS: ("question_template", *_READING),
}


def add_server_options(parser: ArgumentParser) -> None:
    """The options of commands that ask a model here or behind a server."""
    group = parser.add_argument_group(
        "a model behind a server", "Its key, if it has one, is in the environment's OPENAI_API_KEY."
    )
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="Ask this server, such as http://localhost:8000/v1. --model is then the name under which it knows the "
        "model.",
    )
    group.add_argument(
        "--api",
        choices=APIS,
        help="predict: numbers from raft-peft serve. completions: numbers from vLLM, llama.cpp and others. systemone: "
        "typed questions, in the shape of raft-peft serve, vLLM and Jev. decisions: in that of OpenAI. By default "
        "systemone if the rows ask questions, else predict.",
    )
    group.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="For completions: the folder or Hub name with the tokenizer of the model, and with its grid if it was "
        "trained here. By default that of --model.",
    )
    group.add_argument("--concurrency", type=positive, help="Requests at the same time (16).")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="For a whole answer (120).")
    group.add_argument("--max-retries", type=int, help="Of a request that fails by itself (5).")


def choose_api(parser: ArgumentParser, options: Namespace, *, asks_questions: bool) -> str:
    """The API of a server that rows are sent to.

    Args:
        parser: of the options.
        options: `base_url` among them.
        asks_questions: whether the rows or an option bring typed questions.

    Raises:
        ValueError: an option has no effect on a server, or is for another API.
    """
    api = options.api or (SYSTEMONE if asks_questions else PREDICT)
    if api not in (SYSTEMONE, DECISIONS) and options.questions is not None:
        raise ValueError(
            f"`api={api}` gives a number for a prompt, and `questions` are typed questions. Set `api=systemone`, or "
            "leave the questions out."
        )
    if api != COMPLETIONS and options.tokenizer is not None:
        raise ValueError(f"`tokenizer` is for `api=completions`. With `api={api}` the server has it. Leave it out.")
    for name in (*_OF_MODELS_HERE, *_REFUSED[api]):
        if getattr(options, name, None) != parser.get_default(name):
            raise ValueError(
                f"`{name}` has no effect on a model behind `api={api}`: the server decides it. Leave it out, or leave "
                "out `base_url` to run the model here."
            )
    return api


def refuse_server_options(options: Namespace) -> None:
    """Refuse options of a server where none is asked.

    Raises:
        ValueError: there is one.
    """
    for name in ("api", "tokenizer", *_CONNECTION):
        if getattr(options, name, None) is not None:
            raise ValueError(f"`{name}` is for a model behind a server. Set `base_url` too, or leave it out.")


def open_decisions(options: Namespace, api: str) -> RemoteDecisions:
    """What answers typed questions."""
    from raft_peft.prediction.remote.decisions import RemoteDecisions

    return RemoteDecisions(options.base_url, options.model, api=api, **_connection(options))


def number_predictor(options: Namespace) -> NumberPredictor:
    """What predicts numbers: the model of the options, here or behind a server.

    Raises:
        ValueError: there is no grid.
        ConnectionError: the server cannot be reached.
    """
    if options.base_url is None:
        return open_predictor(options)
    from raft_peft.grid import NumberGrid
    from raft_peft.prediction.remote.opening import open_numbers

    template = chosen_template(options)
    given = {**method_options(options), **_connection(options)}
    given |= {} if template is None else {"prompt_template": template}
    grid = None if options.grid is None else NumberGrid.parse(options.grid)
    return open_numbers(options.base_url, options.model, options.api, tokenizer=options.tokenizer, grid=grid, **given)


def _connection(options: Namespace) -> dict[str, Any]:
    return {name: value for name in _CONNECTION if (value := getattr(options, name)) is not None}
