"""The code of the README runs as it is written, on the model it names."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_code_runs(smollm2, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(block.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(smollm2)), names)
    assert names["stars"].shape == (2,)
    assert np.isfinite(names["stars"]).all()
    assert names["distribution"].probs.shape == (2, 5)
    assert (tmp_path / "stars-raft" / "raft_config.json").is_file()
