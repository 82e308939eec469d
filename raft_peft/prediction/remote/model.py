"""`RemoteModel`: a model behind a server, and how it is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import quote

from raft_peft.prediction.remote.completions_api import Connection, NotFoundError, RefusedError, shown_url, url_of

# A server that refuses so many rows, one after the other, is not asked for the others.
REFUSALS_IN_A_ROW = 5


class RemoteModel:
    """A model behind a server.

    Args:
        base_url: of the server, such as `http://localhost:8000/v1`.
        model: the name under which the server knows the model.
        api_key: the server's; by default the environment's OPENAI_API_KEY. Empty for none.
        concurrency: how many requests are under way at once.
        timeout: seconds that the server may take for a whole answer, from connecting to its last byte.
        max_retries: how often a request is repeated after a timeout, a broken connection, or an answer of 429 or 5xx;
            after a pause that grows from half a second to 30, or as long as the server asks, up to two minutes.

    Raises:
        ValueError: the URL is none, or a number is too small.
    """

    # The route that requests are sent to.
    route = ""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        max_retries: int = 5,
    ):
        for name, value, least in (("concurrency", concurrency, 1), ("max_retries", max_retries, 0)):
            if value < least:
                raise ValueError(f"`{name}={value}` must be {least} or more.")
        if not timeout > 0:
            raise ValueError(f"`timeout={timeout}` must be more than 0 seconds.")
        url_of(base_url, self.route)
        self.base_url, self.model = base_url, model
        self.concurrency, self.timeout, self.max_retries = concurrency, timeout, max_retries
        self._api_key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key

    @property
    def computes_in_half(self) -> bool:
        """Whether the model computes in 16 bits; False where the server does not tell."""
        return bool(self.described.get("computes_in_half"))

    @property
    def shown(self) -> str:
        """Where requests are sent, without a password or a key that the URL may hold."""
        return shown_url(self.base_url, self.route)

    def connection(self, route: str) -> Connection:
        """A connection to a route of the server, to be opened by `with`."""
        return Connection(
            self.base_url,
            self.model,
            api_key=self._api_key,
            timeout=self.timeout,
            max_retries=self.max_retries,
            connections=self.concurrency,
            route=route,
        )

    @contextmanager
    def requests(self) -> Iterator[tuple[Connection, ThreadPoolExecutor]]:
        """A connection to the route of the model, and threads that send requests. What waits at the end is dropped."""
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix=f"raft-peft-{self.route}")
        try:
            with self.connection(self.route) as connection:
                yield connection, pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def described(self) -> Mapping[str, Any]:
        """What the server tells of the model, as `raft-peft serve` does: its grid, its questions, its calibration.

        Empty where it has no such route, or does not list the model.

        Raises:
            ConnectionError: the server cannot be reached, or answers with something else.
        """
        try:
            return self.describe()
        except (NotFoundError, RefusedError):
            return {}

    def describe(self) -> Mapping[str, Any]:
        """The same, asked now.

        Raises:
            ConnectionError: as `described`; among these a `NotFoundError` where there is no such route or model.
        """
        with self.connection(f"models/{quote(self.model)}") as connection:
            found = connection.get()
        return found if isinstance(found, Mapping) else {}

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on, as far as it is known, by names and as JSON can hold it."""
        return {
            "url": self.shown,
            "model": self.model,
            # Of the weights and settings, where the server is one of raft-peft.
            "fingerprint": self.described.get("fingerprint"),
        }
