"""What is said by one process, where several train together."""

from __future__ import annotations

import logging

import torch


def warn(logger: logging.Logger, text: str) -> None:
    """Log a warning on the main process alone."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        logger.warning(text)
