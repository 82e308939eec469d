"""What is not shown of the libraries beneath, and what still is."""

import logging
import sys
import warnings

import pytest

from raft_peft.messages import hush_libraries

KERNEL = ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: %s.")
CAST = ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast from %s to float16 during quantization")
DEPRECATED = "`is_gradient_checkpointing` is deprecated and will be removed in v6."


@pytest.mark.parametrize(("name", "text"), [KERNEL, CAST])
def test_of_a_logger_one_message_is_left_out(name, text, caplog):
    hush_libraries()
    logging.getLogger(name).warning(text, "that")
    logging.getLogger(name).warning("Pass %s.", "this")
    assert caplog.messages == ["Pass this."]


@pytest.mark.parametrize(("options", "heard"), [([], ["another"]), (["default"], [DEPRECATED, "another"])])
def test_a_warning_is_left_out_unless_python_is_told_to_warn(options, heard, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        hush_libraries()
        for text in (DEPRECATED, "another"):
            warnings.warn(text, FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == heard
