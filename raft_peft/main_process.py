"""What is said by one process, where several train together."""

from __future__ import annotations

import logging
import sys


def warn(logger: logging.Logger, text: str) -> None:
    """Log a warning on the main process alone."""
    # Where torch is not loaded, there is one process. To say so must not load it.
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        logger.warning(text)
