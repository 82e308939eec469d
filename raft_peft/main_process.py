"""What is said by one process, where several train together."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext


def warn(logger: logging.Logger, text: str) -> None:
    """Log a warning on the main process alone."""
    # Where torch is not loaded, there is one process. To say so must not load it.
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        with _bars_cleared():
            logger.warning(text)


def _bars_cleared() -> AbstractContextManager[None]:
    """Without progress bars, which are drawn again behind what is said."""
    # Where tqdm is not loaded, there is no bar.
    tqdm = sys.modules.get("tqdm")
    return nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(sys.stderr)
