"""`raft-peft serve`."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from raft_peft.cli.options import DTYPES, parse, parser_of, positive
from raft_peft.serving.limits import Limits

SUMMARY = "answer requests over HTTP"
HELP = """\
Serve trained folders over HTTP.

  raft-peft serve stars-raft
  raft-peft serve stars-raft --adapter tone=tone-raft --port 8000 --api-key-file key.txt
  curl localhost:8000/v1/predict -H 'content-type: application/json' -d '{"prompts": ["Review: Broke. Stars:"]}'
  raft-peft serve me/stars --space stars-space

http://localhost:8000 is a page to ask on, with raft-peft[page].
/v1/predict gives numbers, /v1/systemone and /v1/decisions answer typed questions, in the shapes of the decisions APIs.
/docs describes them all. Needs raft-peft[serve].
"""
_KEY = "RAFT_PEFT_API_KEY"


def parser() -> ArgumentParser:
    parser = parser_of("serve", "FOLDER", HELP)
    parser.add_argument("model", metavar="FOLDER", help="Folder or name of a trained model, or of a base model.")
    parser.add_argument("--grid", help="The numbers, for a model that was not trained here.")
    parser.add_argument("--name", help="Name of the model in requests. By default that of the folder.")
    parser.add_argument(
        "--adapter",
        action="append",
        type=_named,
        default=[],
        metavar="NAME=FOLDER",
        help="Another trained folder of the same base model, which is loaded once for all. May be repeated.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (%(default)s, this machine alone).")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on (%(default)s).")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help=f"File with the key that requests must send. Or set {_KEY}."
    )
    parser.add_argument(
        "--no-page", dest="page", action="store_false", help="No page at /, which needs raft-peft[page]."
    )
    parser.add_argument(
        "--space", metavar="DIR", help="Write the page as a folder for a Space of Hugging Face, and serve nothing."
    )
    parser.add_argument(
        "--least-mass",
        type=float,
        default=0.0,
        help="Refuse to answer a question whose labels have less probability than this (%(default)s).",
    )
    loading = parser.add_argument_group("how the model is loaded", "The defaults are the settings of training.")
    loading.add_argument("--dtype", choices=DTYPES, help="Dtype of the weights.")
    loading.add_argument("--autocast", choices=DTYPES[1:], help="Dtype of the products.")
    loading.add_argument("--trust-remote-code", action="store_true", help="Allow the model's own code to run.")
    limits = parser.add_argument_group("limits")
    for one in fields(Limits):
        kind = float if isinstance(one.default, float) else positive
        help_text = f"{one.metadata['help']} (%(default)s)."
        limits.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default, help=help_text)
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)
    if options.space is not None:
        _write_space(options)
        return
    try:
        import uvicorn

        from raft_peft.serving.app import create_app
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"raft-peft serve needs {error.name}. Run: pip install 'raft-peft[serve]'") from None

    from raft_peft.grid import NumberGrid
    from raft_peft.serving.models import open_models

    limits = Limits(**{one.name: getattr(options, one.name) for one in fields(Limits)})
    key = _key(options.api_key_file)
    folders = _folders(options)
    models = open_models(
        folders,
        None if options.grid is None else NumberGrid.parse(options.grid),
        batch_tokens=options.batch_tokens,
        dtype=options.dtype,
        autocast=options.autocast,
        trust_remote_code=options.trust_remote_code,
    )
    app = create_app(models, limits, api_key=key, least_mass=options.least_mass, page=options.page)
    if options.host not in ("127.0.0.1", "localhost", "::1") and key is None:
        print(f"Everyone who reaches {options.host}:{options.port} can send requests. To ask for a key, set {_KEY}.")
    print(f"Serving {', '.join(models)} on http://{options.host}:{options.port}, described at /docs.", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=30)


def _folders(options: Namespace) -> dict[str, str]:
    """The models by their names.

    Raises:
        ValueError: two have one name.
    """
    folders = {options.name or Path(options.model).resolve().name: options.model}
    for name, folder in options.adapter:
        if name in folders:
            raise ValueError(f"Two models are named {name!r}. Give each a name of its own with `name` or `adapter`.")
        folders[name] = folder
    return folders


def _write_space(options: Namespace) -> None:
    from raft_peft.grid import NumberGrid
    from raft_peft.serving.space import write_space

    grid = None if options.grid is None else NumberGrid.parse(options.grid)
    for path in write_space(options.space, _folders(options), grid):
        print(path)
    print(f"To put it on the Hub: hf upload OWNER/NAME {options.space} --repo-type space")


def _named(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, folder


def _key(file: str | None) -> str | None:
    """The key of a file or of the environment; None where there is none."""
    key = os.environ.get(_KEY) if file is None else Path(file).read_text(encoding="utf-8")
    if key is None:
        return None
    if not key.strip():
        raise ValueError("The API key is empty. Write a key of 16 characters or more, or leave it out.")
    return key.strip()
