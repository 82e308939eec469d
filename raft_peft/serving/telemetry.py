"""What a server tells Prometheus of itself."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raft_peft.serving.scheduler import Scheduler


class Telemetry:
    """The metrics of one server."""

    def __init__(self, scheduler: Scheduler, routes: frozenset[str]):
        self.registry = CollectorRegistry()
        self._routes = routes
        self._requests = Counter(
            "raft_peft_requests", "Requests that were answered.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "raft_peft_request_seconds",
            "From a request's arrival to its answer.",
            ["route"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
        self._tokens = Counter("raft_peft_tokens", "Tokens of the prompts that were answered.", registry=self.registry)
        self._prompts = Counter(
            "raft_peft_prompts", "Prompts and questions that were answered.", registry=self.registry
        )
        Gauge(
            "raft_peft_waiting_prompts", "Prompts and states that wait for the model.", registry=self.registry
        ).set_function(lambda: scheduler.waiting)

    def note_answers(self, prompts: int, tokens: int) -> None:
        """Count prompts that were answered, and their tokens."""
        self._prompts.inc(prompts)
        self._tokens.inc(tokens)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Counts and times requests by route and status."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            started, status = time.perf_counter(), 500
            # Paths that do not exist would each be a series of their own.
            route = scope["path"] if scope["path"] in self._routes else "other"

            async def noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noted)
            finally:
                self._requests.labels(route, str(status)).inc()
                self._seconds.labels(route).observe(time.perf_counter() - started)

        return measured
