"""One writer at a time for a file of rows, and what made its rows: a lock and a note beside the file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# What the names of the two files end in, behind that of the file of rows.
LOCK, NOTE = ".lock", ".made_by.json"

# The longest value that a message shows, and what it never shows.
_LONGEST_SHOWN = 60
_DIGEST = re.compile('"[0-9a-f]{16}"')


class MadeBy:
    """Keeps a file for one writer, and knows what made its rows.

    The lock is the operating system's: it ends with the process that holds it, however that ends. The note,
    `NAME.made_by.json`, stays. It holds what made the rows, and the writer.

    Args:
        path: the file of rows, which need not exist.

    Raises:
        OSError: another process, or another part of this one, writes to the file; or it cannot be locked.
    """

    def __init__(self, path: Path):
        self.path = path
        resolved = str(path.resolve())
        self._note = Path(resolved + NOTE)
        self._lock = FileLock(resolved + LOCK, timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise OSError(
                f"{str(path)!r} is being written by {self._writer()}. Wait until it has ended, stop it, or write to "
                "another file."
            ) from None
        except OSError as error:
            raise OSError(
                f"{str(path)!r} cannot be written to: its lock {resolved + LOCK!r} cannot be made "
                f"({error.strerror or error}). Write to a folder in which files can be made."
            ) from error

    def check(self, made_by: Mapping[str, Any]) -> None:
        """Refuse to go on with rows that something else made.

        What a note of an earlier version does not name is not compared. Without a note nothing is, which is logged.

        Args:
            made_by: what is about to make rows, as `write` takes it.

        Raises:
            ValueError: the rows in the file were made by something else, which the message names.
        """
        then = self._read().get("made_by")
        if then is None:
            logger.warning(
                f"It is not known what made the rows in {self.path}, since {self._note.name} is not beside it. They "
                "are taken for rows of the same model and settings."
            )
            return
        now = json.loads(json.dumps(made_by))
        other = [name for name, value in now.items() if name in then and then[name] != value]
        if other:
            changes = ", ".join(_change(name, then[name], now[name]) for name in other)
            raise ValueError(
                f"{self.path} was written with another {changes}. Continue with the settings of before, write to "
                "another file, or remove it."
            )

    def write(self, made_by: Mapping[str, Any] | None, *, keep: bool = False) -> None:
        """Keep a note of the writer, which is this process, and of what makes the rows.

        Args:
            made_by: names and values, as JSON can hold them.
            keep: leave what the note says of the rows as it is.

        Raises:
            OSError: the note cannot be written.
        """
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        note = {
            "made_by": self._read().get("made_by") if keep else made_by,
            "writer": {"process": os.getpid(), "host": socket.gethostname(), "since": since},
        }
        unfinished = self._note.with_name(self._note.name + ".unfinished")
        unfinished.write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(self._note)

    def forget(self) -> None:
        """Remove the note."""
        self._note.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others write to the file."""
        if not self._lock.is_locked:
            return
        # Removed while it is held: whoever waits for the removed one sees that, and makes another.
        with contextlib.suppress(OSError):
            os.unlink(self._lock.lock_file)
        self._lock.release()

    def _read(self) -> dict[str, Any]:
        """The note; empty where there is none.

        Raises:
            ValueError: it is none.
        """
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if not isinstance(note, dict) or not isinstance(note.get("made_by"), dict | None):
                raise ValueError("it is not an object of `made_by` and `writer`")
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self._note} should say what made the rows in {self.path.name}, and cannot be read: {error}. "
                "Write to another file; or remove the note, if the same model made these rows."
            ) from None
        return note

    def _writer(self) -> str:
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            writer = self._read()["writer"]
            return f"process {writer['process']} on {writer['host']}, since {writer['since']}"
        return "another process"


def _change(name: str, then: Any, now: Any) -> str:
    shown = [json.dumps(value, ensure_ascii=False) for value in (then, now)]
    if max(map(len, shown)) > _LONGEST_SHOWN or any(map(_DIGEST.fullmatch, shown)):
        return name
    return f"{name} ({shown[0]}, not {shown[1]})"
