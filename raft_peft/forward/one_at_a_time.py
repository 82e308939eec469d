"""Models that must not be run by two threads at once, since a forward pass of theirs keeps something on a module."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

_LOCK = threading.RLock()


def turn_of(model: Any) -> AbstractContextManager[Any]:
    """A lock where the model's forward changes its modules, and nothing where any number of threads may run it.

    bitsandbytes keeps the outliers of a product on its int8 layers, and transformers the frequencies for the longest
    row seen on rotary embeddings that are scaled as they go ("dynamic" and "longrope").
    """
    return _LOCK if any(_changes_in_a_forward(module) for module in model.modules()) else nullcontext()


def _changes_in_a_forward(module: Any) -> bool:
    # Looked up where it is kept: asked of every module at every request, a missing attribute is slow.
    kinds = vars(module).get("rope_type") or ()
    kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
    scaled = any("dynamic" in kind or kind == "longrope" for kind in kinds if isinstance(kind, str))
    return scaled or type(module).__name__ == "Linear8bitLt"
