"""Carries out a run of a comparison, in a process of its own or in this one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from raft_peft.compare.run import execute

LOG = "log.txt"


def carry_out(folder: Path, *, one_process: bool) -> str | None:
    """Carry out the run whose settings lie in a folder. Returns why it failed, if it did."""
    return _do_here(folder) if one_process else _do_in_process(folder)


def _do_in_process(folder: Path) -> str | None:
    """Carry out a run in a process of its own. Returns why it failed, if it did."""
    with (folder / LOG).open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "raft_peft.compare.run", str(folder), str(os.getpid())]
        process = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if process.returncode == 0:
        return None
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the process ended with code {process.returncode}"


def _do_here(folder: Path) -> str | None:
    """Carry out a run in this process. Returns why it failed, if it did."""
    with (folder / LOG).open("w", encoding="utf-8") as log, _written_to(log):
        try:
            execute(folder)
        # A run that fails leaves the others alone, whatever the reason.
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _written_to(log: TextIO) -> Iterator[None]:
    """For the time of a `with` block, write to a file what would be printed or logged on the console."""
    loggers = (logging.getLogger(name) for name in (None, "transformers", "datasets"))
    handlers = [one for logger in loggers for one in logger.handlers if type(one) is logging.StreamHandler]
    before = [(handler, handler.setStream(log)) for handler in handlers]
    try:
        with redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        for handler, stream in before:
            if stream is not None:
                handler.setStream(stream)
