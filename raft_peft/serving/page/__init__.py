"""The page of a server, at `/`: ask a model, and see what it answers beside its base model."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.routing import Route

from raft_peft.serving.computing import Computer

# What a browser asks for. Gradio has more routes, such as uploads and a proxy, which the page has no use for.
PATHS = ("/", "/assets", "/config", "/favicon.ico", "/gradio_api/run", "/static", "/theme.css")
_MISSING = (
    "The page needs gradio. Run: pip install 'raft-peft[page]'. What can be asked without it is described at /docs."
)


def add_page(app: FastAPI, computer: Computer, least_mass: float) -> AbstractAsyncContextManager[Any] | None:
    """Add the page to a server. Without gradio there is a message in its place.

    Args:
        app: the server.
        computer: answers its requests, and those of the page.
        least_mass: the probability of all labels below which a question is not answered.

    Returns:
        What has to be entered while the server runs; None where there is no page.
    """
    try:
        from raft_peft.serving.page.blocks import page_app
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        app.get("/", include_in_schema=False)(lambda: PlainTextResponse(_MISSING))
        return None
    inner, lifespan = page_app(computer, least_mass)
    for path in PATHS:
        app.router.routes.append(Route(path, inner, methods=["GET", "HEAD", "POST"]))
        if path != "/":
            app.router.routes.append(Route(f"{path}/{{rest:path}}", inner, methods=["GET", "HEAD", "POST"]))
    return lifespan
