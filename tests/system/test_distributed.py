"""Several processes on the CPU: the same losses and weights as one, and every row predicted once and in order."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_byte_level, make_tiny_llama
from safetensors.torch import load_file
from support.process_worker import QUESTION_ROWS, REASONED_ROWS, ROWS

from raft_peft import RegressionPredictor

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "support" / "process_worker.py"
CONFIGS = ROOT / "examples" / "accelerate"
DEEPSPEED = ROOT / "build" / "deepspeed"
PER_STEP = 6
SEVERAL = [0, 0.5, 1, 4, 10]

# 26 rows do not divide by 6: the fifth step of each epoch has 2 rows, which are not enough for all processes.
JOBS = [
    {"name": "raft"},
    {"name": "accumulated", "per_step": 12, "settings": {"gradient_accumulation_steps": 2}},
    {"name": "checkpointing", "settings": {"gradient_checkpointing": True}},
    {"name": "several", "grid": SEVERAL},
    # Without checkpointing and without padding.
    {"name": "chosen", "settings": {"gradient_checkpointing": None, "padding_free": None}},
    {"name": "all_weights", "lora": False},
    {"name": "qlora", "quantized": True},
    {
        "name": "questions",
        "per_step": 12,
        "settings": {
            "gradient_accumulation_steps": 2,
            "padding_free": True,
            "question_template": {"chat": False},
            "question_weights": {"size": 3},
        },
    },
    {
        "name": "reasonings",
        "per_step": 12,
        "settings": {"gradient_accumulation_steps": 2, "padding_free": True, "reasonings": "one"},
    },
    *(
        {"name": method, "settings": {"method": method}}
        for method in ("learnable_raft", "logits_mlp", "pooled", "special_token", "log_loss", "ce")
    ),
]
OF_THREE = [job for job in JOBS if job["name"] in ("raft", "accumulated", "several", "questions", "logits_mlp", "ce")]
OF_DEEPSPEED = [
    job
    for job in JOBS
    if job["name"] in ("raft", "accumulated", "several", "all_weights", "qlora", "logits_mlp", "ce")
]
OF_FSDP = [job for job in JOBS if job["name"] in ("raft", "several", "logits_mlp", "pooled", "ce", "qlora")]


def saved_and_resumed(name, step):
    """A job that is saved in the middle of an epoch, and one that goes on from there, as after a kill."""
    (job,) = (job for job in JOBS if job["name"] == name)
    settings = {**job.get("settings", {}), "save_strategy": "steps", "save_steps": step}
    saved = {**job, "name": f"{name}_saved", "as": name, "settings": settings}
    return [saved, {**job, "name": f"{name}_resumed", "as": name, "from": f"{name}_saved/0/checkpoint-{step}"}]


# An epoch has five steps, and one of questions and of reasonings three.
OF_TWO = [
    *saved_and_resumed("raft", 3),
    *saved_and_resumed("questions", 4),
    *saved_and_resumed("reasonings", 4),
]


def run_worker(folder, jobs, command, **environment):
    jobs = [{"per_step": PER_STEP, **job} for job in jobs]
    command = [sys.executable, *command, str(WORKER), str(folder), json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]


def launch(folder, jobs, processes, config, *arguments, **environment):
    """By `accelerate launch`, with one of the configurations in examples/, but in float32."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), "--mixed_precision", "no"]
    command += ["--num_processes", str(processes), "--main_process_port", str(port), *arguments]
    run_worker(folder, jobs, command, **environment)


def results(folder, name):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-[0-9].json"))]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The folder of the runs in one process."""
    folder = tmp_path_factory.mktemp("one")
    tokenizer = make_byte_level()
    make_tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run_worker(folder, JOBS, [])
    return folder


def copied_model(one_process, folder):
    for path in one_process.iterdir():
        if path.is_file() and "-0.json" not in path.name:
            shutil.copy(path, folder)
    return folder


def compare(one_process, folder, job, processes, atol=1e-5):
    """The largest differences of losses, weights and predictions."""
    (alone,) = results(one_process, job["name"])
    together = results(folder, job["name"])
    assert len(together) == processes
    np.testing.assert_allclose(together[0]["losses"], alone["losses"], atol=1e-5)
    saved, expected = folder / job["name"] / "0", one_process / job["name"] / "0"
    files = sorted(path.name for path in expected.glob("*.safetensors"))
    assert files
    for file in files:
        weights = load_file(saved / file)
        for name, weight in load_file(expected / file).items():
            torch.testing.assert_close(
                weights[name], weight, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
    for result in together:
        np.testing.assert_allclose(result["predictions"], alone["predictions"], atol=2e-5)
        for name, value in alone["metrics"].items():
            if name.endswith(("_loss", "_rmse", "_nll", "_label_mass")):
                assert result["metrics"][name] == pytest.approx(value, abs=1e-5), name
    assert [path.name for path in (folder / job["name"]).iterdir()] == ["0"]  # one process alone writes
    predictor = RegressionPredictor.from_pretrained(saved)
    if job["name"] == "questions":
        rows = [{name: json.loads(text) for name, text in row.items()} for row in QUESTION_ROWS]
        answers = [answer for row in predictor.decide_rows(rows) for answer in row.values()]
        loaded = [
            # A trainer gives the place of a choice's option.
            list(one.probabilities).index(one.value) if isinstance(one.value, str) else one.value
            for one in answers
        ]
    else:
        loaded = predictor.predict(REASONED_ROWS if job["name"] == "reasonings" else [row["prompt"] for row in ROWS])
        assert len(loaded) == len(ROWS)
    np.testing.assert_allclose(loaded, alone["predictions"], atol=2e-5)


@pytest.mark.parametrize(
    ("processes", "jobs", "more"), [(2, JOBS, OF_TWO), pytest.param(3, OF_THREE, [], marks=pytest.mark.slow)]
)
def test_ddp(one_process, tmp_path, processes, jobs, more):
    launch(copied_model(one_process, tmp_path), [*jobs, *more], processes, "ddp.yaml")
    for job in jobs:
        compare(one_process, tmp_path, job, processes)
    assert "MULTI_CPU" in results(tmp_path, "raft")[0]["engine"]
    # The repeated rows at the end of an epoch count no more than they did where training goes on in its middle.
    for job in more:
        found, alone = results(tmp_path, job["name"])[0], results(one_process, job["as"])[0]
        np.testing.assert_allclose(found["losses"], alone["losses"], atol=1e-5)
        np.testing.assert_allclose(found["predictions"], alone["predictions"], atol=2e-5)


@pytest.mark.parametrize(
    ("processes", "state", "jobs"),
    [
        (2, "FULL_STATE_DICT", OF_FSDP),
        pytest.param(3, "SHARDED_STATE_DICT", OF_FSDP[:1], marks=pytest.mark.slow),
    ],
)
def test_fsdp2(one_process, tmp_path, processes, state, jobs):
    arguments = ["--fsdp_state_dict_type", state]
    launch(copied_model(one_process, tmp_path), jobs, processes, "fsdp2.yaml", *arguments)
    for job in jobs:
        compare(one_process, tmp_path, job, processes)
    assert "FSDP" in results(tmp_path, "raft")[0]["engine"]


@pytest.mark.slow  # where it is run for the first time, DeepSpeed compiles what it needs on a CPU
@pytest.mark.parametrize(("stage", "processes"), [(2, 2), (3, 3)])
def test_deepspeed(one_process, tmp_path, stage, processes):
    if not (DEEPSPEED / "deepspeed").is_dir():
        pytest.skip("DEEPSPEED IS MISSING, so that ZeRO was not tried. Run `make .venv/.test` where it installs.")
    paths = os.pathsep.join([str(DEEPSPEED), os.environ.get("PYTHONPATH", "")])
    folder = copied_model(one_process, tmp_path)
    launch(folder, OF_DEEPSPEED, processes, f"deepspeed_zero{stage}.yaml", PYTHONPATH=paths, DS_ACCELERATOR="cpu")
    for job in OF_DEEPSPEED:
        compare(one_process, tmp_path, job, processes, atol=2e-5)  # its AdamW rounds otherwise
    assert "DEEPSPEED" in results(tmp_path, "raft")[0]["engine"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_what_accelerate_reads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    stated = yaml.safe_load(path.read_text())
    assert stated["distributed_type"] == config.distributed_type.value
    assert set(stated) <= set(vars(config)) | {"deepspeed_config", "fsdp_config"}
