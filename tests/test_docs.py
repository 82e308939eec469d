"""The code of the README and of the docs runs as it is written, on the model it names."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def run_code(page, smollm2, folder, monkeypatch):
    """Run all Python blocks of a page one after the other, and give the names they leave."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(folder)
    names: dict = {"__name__": page}
    for block in blocks:
        exec(block.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(smollm2)), names)
    return names


def test_readme(smollm2, tmp_path, monkeypatch):
    names = run_code("README.md", smollm2, tmp_path, monkeypatch)
    assert names["stars"].shape == (2,)
    assert np.isfinite(names["stars"]).all()
    assert names["distribution"].probs.shape == (2, 5)
    assert (tmp_path / "stars-raft" / "raft_config.json").is_file()


def test_methods(smollm2, tmp_path, monkeypatch):
    names = run_code("docs/methods.md", smollm2, tmp_path, monkeypatch)
    distribution = names["GridDistribution"](torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0.0, 2.0]))
    loss = names["VariancePenalised"]()(distribution, torch.tensor([2.0]))
    assert loss.item() == pytest.approx(1.1)  # mean 1, variance 1: (2 - 1)^2 + 0.1 x 1
    assert (tmp_path / "stars-last-token" / "regression_head.safetensors").is_file()


def test_grids(smollm2, tmp_path, monkeypatch):
    names = run_code("docs/grids.md", smollm2, tmp_path, monkeypatch)
    assert len(names["grid"]) == len(names["tenths"]) == 51
    assert (tmp_path / "similarity-tokens" / "adapter_model.safetensors").stat().st_size < 50_000_000
