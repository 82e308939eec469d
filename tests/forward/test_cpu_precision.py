"""bf16 on a CPU that has no instructions for it: right, but slow, and it is said."""

import logging

import pytest
import torch

from raft_peft import NumberGrid, RegressionAwareConfig, RegressionPredictor


@pytest.fixture
def said(monkeypatch, caplog):
    """Whether it was said, after what is done, on a CPU with these instructions."""

    def said(do, **instructions):
        capabilities = {"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False, **instructions}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="raft_peft"):
            do()
        return [record.message.rpartition(". ")[2] for record in caplog.records if "no instructions" in record.message]

    return said


def test_in_training(said):
    cure = ["Leave `bf16` and `bf16_full_eval` unset."]
    assert said(lambda: RegressionAwareConfig("out", use_cpu=True, bf16=True)) == cure
    assert said(lambda: RegressionAwareConfig("out", use_cpu=True, bf16=False, bf16_full_eval=True)) == cure
    assert said(lambda: RegressionAwareConfig("out", use_cpu=True)) == []
    for instructions in ({"avx512_bf16": True}, {"amx_bf16": True}, {"architecture": "aarch64"}):
        assert said(lambda: RegressionAwareConfig("out", use_cpu=True, bf16=True), **instructions) == []


@pytest.mark.parametrize(
    ("autocast", "cures"), [("bfloat16", ["Set `autocast='float32'`."]), ("float32", []), (None, [])]
)
def test_in_prediction(said, tiny_llama, tokenizer, autocast, cures):
    assert said(lambda: RegressionPredictor(tiny_llama, tokenizer, NumberGrid(range(5)), autocast=autocast)) == cures
