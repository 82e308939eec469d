"""How much memory is in use while code runs, counted by the storages of the tensors that it makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside of it and are alive, after each operation that makes one.

    A storage is counted once however many tensors look at it, and until the last of them is gone. Under a
    `FakeTensorMode`, whose tensors have sizes and no memory, this is the memory that the same code would take. What
    an operation needs within itself and gives back at its end is not seen.

    Args:
        known: tensors that are there before and are not counted.
        watched: which tensors to count apart, too.
    """

    def __init__(self, known: Iterable[torch.Tensor], watched: Callable[[torch.Tensor], bool]):
        super().__init__()
        self._watched = watched
        self._made: list[tuple[int, int, bool, weakref.ref]] = []  # when, bytes, watched, storage
        self._freed: list[tuple[int, int]] = []  # the place in `_made`, when
        self._place: dict[int, int] = {}  # of storages that are alive, by their identity
        self._known = [tensor.untyped_storage() for tensor in known]
        self._known_ids = {id(storage) for storage in self._known}
        self._time = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._place or id(storage) in self._known_ids:
            return
        place, identity = len(self._made), id(storage)

        def free(_: Any) -> None:
            self._freed.append((place, self._time))
            del self._place[identity]

        self._place[identity] = place
        self._made.append((self._time, storage.nbytes(), self._watched(tensor), weakref.ref(storage, free)))
        self._time += 1

    def timeline(self, watched: bool = False) -> np.ndarray:
        """The bytes alive after each tensor was made, in order, or those of the watched tensors alone."""
        return self._accumulate(
            [(place, when) for place, (when, _, apart, _) in enumerate(self._made) if apart or not watched]
        )

    def timeline_of(self, tensors: Iterable[torch.Tensor]) -> np.ndarray:
        """The bytes alive of these tensors alone, where they were made inside, after each tensor was made."""
        places = {self._place[id(t.untyped_storage())] for t in tensors if id(t.untyped_storage()) in self._place}
        return self._accumulate([(place, self._made[place][0]) for place in places])

    def _accumulate(self, made: list[tuple[int, int]]) -> np.ndarray:
        places = {place for place, _ in made}
        change = np.zeros(self._time + 1)
        for place, when in made:
            change[when] += self._made[place][1]
        for place, when in self._freed:
            if place in places:
                change[when] -= self._made[place][1]
        return change[: self._time].cumsum()
