"""The queue: fair, in batches, and one request's failure its own."""

import threading
import time

import pytest

from raft_peft.serving.errors import RequestError
from raft_peft.serving.limits import Limits
from raft_peft.serving.scheduler import Scheduler


class Recorder:
    """Squares numbers, one batch at a time, behind a gate."""

    def __init__(self):
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, kind, items):
        self.gate.wait()
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("a bad item")
        return [item**2 for item in items]


def blocked(recorder, scheduler):
    """A scheduler that is at a first item, so that what is submitted next waits together."""
    recorder.gate.clear()
    first = scheduler.submit("a", [0], [1])
    while scheduler.waiting and not scheduler._jobs[0].has_begun:
        time.sleep(0.001)
    return first


def test_waiting_requests_are_one_batch_and_a_long_one_holds_up_none():
    recorder = Recorder()
    scheduler = Scheduler(recorder, Limits(batch_tokens=40))
    blocked(recorder, scheduler)
    long = scheduler.submit("a", list(range(100, 110)), [10] * 10)
    short = scheduler.submit("a", [7], [10])
    recorder.gate.set()
    assert short.result(5) == [49] and long.result(5) == [item**2 for item in range(100, 110)]
    # One item of each in turn: the short one is in the first batch behind the first item.
    assert recorder.batches[1] == [100, 101, 102, 7]
    assert [len(batch) for batch in recorder.batches] == [1, 4, 4, 3]
    scheduler.close()


def test_an_item_larger_than_a_batch_is_computed_alone():
    recorder = Recorder()
    scheduler = Scheduler(recorder, Limits(batch_tokens=10))
    assert scheduler.submit("a", [3, 4], [1000, 1000]).result(5) == [9, 16]
    assert recorder.batches == [[3], [4]]
    scheduler.close()


def test_kinds_are_computed_apart():
    recorder = Recorder()
    scheduler = Scheduler(recorder, Limits())
    blocked(recorder, scheduler)
    found = [scheduler.submit(kind, [item], [1]) for kind, item in (("a", 1), ("b", 2), ("a", 3))]
    recorder.gate.set()
    assert [one.result(5) for one in found] == [[1], [4], [9]]
    assert recorder.batches == [[0], [1, 3], [2]]
    scheduler.close()


def test_one_failure_is_that_of_its_request_alone():
    recorder = Recorder()
    scheduler = Scheduler(recorder, Limits())
    blocked(recorder, scheduler)
    good, bad = scheduler.submit("a", [2], [1]), scheduler.submit("a", ["bad"], [1])
    recorder.gate.set()
    assert good.result(5) == [4]
    with pytest.raises(ValueError, match="a bad item"):
        bad.result(5)
    scheduler.close()


def test_what_is_too_much_too_late_or_wanted_no_more_is_not_computed():
    recorder = Recorder()
    scheduler = Scheduler(recorder, Limits(waiting_prompts=3, seconds=0.05))
    first = blocked(recorder, scheduler)
    late, gone = scheduler.submit("a", [5], [1]), scheduler.submit("a", [6], [1])
    with pytest.raises(RequestError, match="3 prompts wait already") as refused:
        scheduler.submit("a", [7], [1])
    assert refused.value.status == 429
    gone.cancel()
    time.sleep(0.06)
    recorder.gate.set()
    with pytest.raises(RequestError, match=r"longer than 0\.05 seconds"):
        late.result(5)
    assert first.result(5) == [0] and recorder.batches == [[0]]
    scheduler.close()


def test_closing_ends_what_runs_and_refuses_the_rest():
    recorder = Recorder()
    scheduler = Scheduler(recorder, Limits())
    running = blocked(recorder, scheduler)
    waiting = scheduler.submit("a", [5], [1])
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    with pytest.raises(RequestError, match="being stopped"):
        waiting.result(5)
    with pytest.raises(RequestError, match="being stopped"):
        scheduler.submit("a", [6], [1])
    recorder.gate.set()
    closer.join(5)
    assert running.result(0) == [0] and not scheduler.is_running
