"""What is said by one process where several train together, and what libraries say that nobody can act on."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext

# Warnings of one library about a call of another's, and the beginnings of what is logged, by the logger.
_WARNED = (
    # PEFT asks transformers so at each adapter that it opens.
    "`is_gradient_checkpointing` is deprecated",
)
_LOGGED = {
    # When bitsandbytes is imported, as by PEFT: that a kernel of the Hub for 4-bit weights on a CPU is not installed.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    # At each layer of 8-bit weights in each forward pass: that it computes in float16, which is how it is defined.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


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


def hush_libraries() -> None:
    """Leave out these messages alone, unless Python is told to warn (`-W`)."""
    if sys.warnoptions:
        return
    for beginning in _WARNED:
        warnings.filterwarnings("ignore", message=beginning, category=FutureWarning)
    for name in _LOGGED:
        logging.getLogger(name).addFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED[record.name])
