"""What is settled before a request is read: its key and the size of its body."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raft_peft.serving.errors import RequestError, too_large, unauthorized

# What is answered without a key: whether the server is up.
_OPEN = ("/health",)


def error_response(error: RequestError) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse(error.body(), error.status, error.headers)


class RequireKey:
    """Refuses requests without the key.

    Args:
        app: what is behind it.
        key: that of the server.
        page: paths for a browser, and all below them but those below `/`. A browser asks its user for a name and a
            password there. The key is the password.
    """

    def __init__(self, app: ASGIApp, key: str, page: Sequence[str] = ()):
        self._app, self._key, self._page = app, key.encode(), page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        error = unauthorized()
        if self._is_of_page(scope):
            error.headers["WWW-Authenticate"] = (
                'Basic realm="raft-peft: any name, the API key as password", charset="UTF-8"'
            )
        await error_response(error)(scope, receive, send)

    def _is_of_page(self, scope: Scope) -> bool:
        asked = scope["path"]
        return any(asked == path or (path != "/" and asked.startswith(f"{path}/")) for path in self._page)

    def _is_known(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        kind, key = kind.lower(), key.strip()
        if kind == b"basic" and self._is_of_page(scope):
            kind, key = b"bearer", _password(key)
        # The time that it takes tells nothing of how much of the key was right.
        return hmac.compare_digest(key, self._key) and kind == b"bearer"


def _password(credentials: bytes) -> bytes:
    """The password of Basic authentication; empty where it cannot be read."""
    try:
        return base64.b64decode(credentials).partition(b":")[2]
    except binascii.Error:
        return b""


class LimitBody:
    """Refuses bodies that are too large, before they are read where their size is told.

    Args:
        app: what is behind it.
        limit: bytes.
    """

    def __init__(self, app: ASGIApp, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"")
        if told.isdigit() and int(told) > self._limit:
            await error_response(too_large(self._limit))(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            # Enough to end the reading. What is answered is settled below.
            return {"type": "http.request", "body": b"", "more_body": False} if read > self._limit else message

        async def replaced(message: Message) -> None:
            if read <= self._limit:
                await send(message)
            elif message["type"] == "http.response.start":
                await error_response(too_large(self._limit))(scope, receive, send)

        await self._app(scope, counted, replaced)
