"""Requests that come together are computed together: a queue in front of one thread that runs the models."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raft_peft.serving.errors import RequestError, busy, closing, out_of_time
from raft_peft.serving.limits import Limits

logger = logging.getLogger(__name__)

# How a kind of items is computed: for each item its result, in order.
Run = Callable[[Hashable, Sequence[Any]], Sequence[Any]]


@dataclass(eq=False)
class _Job:
    """The items of one request.

    Attributes:
        kind: of its items; those of one kind can be computed together.
        items: what is computed, one after another.
        tokens: of each item.
        deadline: on the monotonic clock, in seconds.
        future: gets the results, and is cancelled where the client has gone.
        results: of the items so far.
        has_begun: whether any item was taken into a batch.
    """

    kind: Hashable
    items: Sequence[Any]
    tokens: Sequence[int]
    deadline: float
    future: Future[list[Any]] = field(default_factory=Future)
    results: list[Any] = field(default_factory=list)
    has_begun: bool = False

    def fail(self, error: Exception) -> None:
        """End it with an error, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Scheduler:
    """Computes the items of requests on one thread, those that wait together in one batch.

    A batch takes one item of each request in turn until it has its tokens, so that a request of a thousand prompts
    does not hold up one of a single prompt.

    Args:
        run: computes items of one kind. It is called on the thread of the scheduler alone.
        limits: `waiting_prompts`, `batch_tokens`, `wait_milliseconds` and `seconds` count here.
    """

    def __init__(self, run: Run, limits: Limits):
        self._run, self._limits = run, limits
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="raft-peft-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many items wait, those that are being computed among them."""
        with self._changed:
            return self._waiting()

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closed

    def submit(self, kind: Hashable, items: Sequence[Any], tokens: Sequence[int]) -> Future[list[Any]]:
        """Let items be computed.

        Args:
            kind: those of one kind can be computed together.
            items: in the order of the results.
            tokens: of each item, as far as they are computed.

        Returns:
            The results, or the error of these items. Cancel it where nobody waits for it any more.

        Raises:
            RequestError: too many wait, or the server is being stopped.
        """
        job = _Job(kind, items, tokens, time.monotonic() + self._limits.seconds)
        with self._changed:
            if not self.is_running:
                raise closing()
            waiting = self._waiting()
            # A request alone is always taken; its own limit is another.
            if waiting and waiting + len(items) > self._limits.waiting_prompts:
                raise busy(waiting)
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Refuse what is new, and what has not begun; finish what has."""
        with self._changed:
            self._closed = True
            for job in [job for job in self._jobs if not job.has_begun]:
                self._jobs.remove(job)
                job.fail(closing())
            self._changed.notify()
        self._thread.join()

    def _waiting(self) -> int:
        return sum(len(job.items) - len(job.results) for job in self._jobs)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    if self._closed:
                        return
                    self._changed.wait()
                self._wait_for_others()
                batch = self._next_batch()
            for kind in dict.fromkeys(job.kind for job in batch):
                self._compute(kind, {job: items for job, items in batch.items() if job.kind == kind})

    def _wait_for_others(self) -> None:
        """Give requests that come together the time to do so."""
        until = time.monotonic() + self._limits.wait_milliseconds / 1000
        while not self._closed and (left := until - time.monotonic()) > 0:
            if sum(sum(job.tokens[len(job.results) :]) for job in self._jobs) >= self._limits.batch_tokens:
                return
            self._changed.wait(left)

    def _next_batch(self) -> dict[_Job, list[Any]]:
        """The items of the next batch, by their requests, which then stand at the end of the queue."""
        self._drop_ended()
        batch: dict[_Job, list[Any]] = {}
        tokens, taken = 0, True
        while taken:
            taken = False
            for job in self._jobs:
                place = len(job.results) + len(batch.get(job, ()))
                if place == len(job.items):
                    continue
                if batch and tokens + job.tokens[place] > self._limits.batch_tokens:
                    continue
                batch.setdefault(job, []).append(job.items[place])
                tokens += job.tokens[place]
                taken = True
        for job in batch:
            job.has_begun = True
            self._jobs.remove(job)
            self._jobs.append(job)
        return batch

    def _drop_ended(self) -> None:
        """Forget requests that nobody waits for, and those whose time is over."""
        now = time.monotonic()
        for job in list(self._jobs):
            if job.deadline < now:
                job.fail(out_of_time(self._limits.seconds))
            if job.future.done():
                self._jobs.remove(job)

    def _compute(self, kind: Hashable, batch: dict[_Job, list[Any]]) -> None:
        try:
            found = iter(self._run(kind, [item for items in batch.values() for item in items]))
        except Exception as error:
            if len(batch) > 1:
                # One request's mistake is not that of the others.
                for job, items in batch.items():
                    self._compute(kind, {job: items})
                return
            (job,) = batch
            self._end(job, error)
            return
        for job, items in batch.items():
            job.results += [next(found) for _ in items]
            if len(job.results) == len(job.items):
                self._end(job, None)

    def _end(self, job: _Job, error: Exception | None) -> None:
        with self._changed, suppress(ValueError):
            self._jobs.remove(job)
        if error is None:
            with suppress(InvalidStateError):
                job.future.set_result(job.results)
            return
        if not isinstance(error, RequestError):
            logger.error("A request has failed.", exc_info=error)
        job.fail(error)
