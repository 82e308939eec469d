"""What `raft-peft serve` answers under load, beside `predict` on one list, and a plain route with a pipeline.

    python benchmarks/server.py --model build/models/HuggingFaceTB/SmolLM2-135M-Instruct

Needs wrk (`apt install wrk`) and raft-peft[serve]. Each server runs in a process of its own, and clients send one
prompt after the other, each another one, about as long as those of STS-B.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from common import plain_route
from common.prompts import like_stsb
from common.side_by_side import device_name, write
from transformers import HfArgumentParser

from raft_peft import RegressionPredictor

GRID = range(6)
# wrk runs this in each of its threads: another body for each request.
_BODIES = """
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
local at = math.random(#bodies)
function request()
  at = at % #bodies + 1
  return wrk.format("POST", nil, {["Content-Type"] = "application/json"}, bodies[at])
end
"""
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    clients: int = field(default=64, metadata={"help": "How many clients send requests at once."})
    seconds: int = field(default=120, metadata={"help": "How long they do."})
    prompts: int = field(default=2000, metadata={"help": "How many different prompts there are."})
    port: int = field(default=8765, metadata={"help": "Port of the servers."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


@dataclass
class Load:
    """What clients met: requests a second, seconds of the median and of the 99th percentile, failed requests, and the
    resident memory of the server in bytes, after a tenth of the load and at its end."""

    throughput: float
    median: float
    percentile_99: float
    failed: int
    memory_early: int
    memory: int


def main(args: Arguments) -> None:
    prompts = like_stsb(args.prompts)
    serve = [sys.executable, "-m", "raft_peft.cli", "serve", args.model, "--grid", "0,1,2,3,4,5", "--dtype", "float32"]
    with running([*serve, "--port", str(args.port), "--no-page"], args.port) as server:
        ours = load(args, server, "/v1/predict", [{"prompts": [prompt]} for prompt in prompts])
    with running([sys.executable, plain_route.__file__, args.model, str(args.port)], args.port) as server:
        plain = load(args, server, "/score", [{"text": prompt} for prompt in prompts])
    rate = of_predict(args.model, prompts)
    print(f"predict on a list of {len(prompts)} prompts: {rate:.1f} prompts a second, on {device_name('cpu')}\n")
    print("| server | requests a second | beside `predict` | median | 99th percentile | failed | memory |")
    print("|---|---|---|---|---|---|---|")
    for name, found in {"`raft-peft serve`": ours, "pipeline, a request at a time": plain}.items():
        memory = f"{found.memory_early / 1e9:.2f} to {found.memory / 1e9:.2f} GB"
        times = f"{found.median:.2f} s | {found.percentile_99:.2f} s"
        beside = found.throughput / rate
        print(f"| {name} | {found.throughput:.1f} | {beside:.2f} | {times} | {found.failed} | {memory} |")
    write(args, {"serve": asdict(ours), "plain route": asdict(plain), "predict": rate, "device": device_name("cpu")})


def of_predict(model: str, prompts: list[str]) -> float:
    """The prompts a second of `predict` on one list."""
    predictor = RegressionPredictor.from_pretrained(model, GRID, dtype="float32")
    predictor.predict(prompts[:64], show_progress=False)
    started = time.perf_counter()
    predictor.predict(prompts, show_progress=False)
    return len(prompts) / (time.perf_counter() - started)


@contextmanager
def running(command: list[str], port: int) -> Iterator[psutil.Process]:
    """For the time of a `with` block, a server in a process of its own."""
    process = subprocess.Popen(command)
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                raise RuntimeError(f"The server ended with status {process.returncode}: {' '.join(command)}")
            time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def load(args: Arguments, server: psutil.Process, route: str, bodies: list[dict]) -> Load:
    """Send requests by wrk."""
    with tempfile.TemporaryDirectory() as folder:
        script, lines = Path(folder) / "bodies.lua", Path(folder) / "bodies.jsonl"
        script.write_text(_BODIES)
        lines.write_text("\n".join(map(json.dumps, bodies)))
        command = ["wrk", "-t", "1", "-c", str(args.clients), "--latency", "--timeout", "60s", "-s", str(script)]
        url = f"http://127.0.0.1:{args.port}{route}"
        memory = {}
        for name, seconds in (("early", max(1, args.seconds // 10)), ("end", args.seconds)):
            timed = [*command, "-d", f"{seconds}s", url]
            done = subprocess.run(
                timed, env={**os.environ, "BODIES": str(lines)}, capture_output=True, text=True, check=True
            )
            memory[name] = server.memory_info().rss
    return read(done.stdout, memory["early"], memory["end"])


def read(report: str, memory_early: int, memory: int) -> Load:
    """What wrk says."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", report)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    count = (int(failed[1]) if failed else 0) + (sum(map(int, errors.groups())) if errors else 0)
    times = {part: _seconds(report, part) for part in ("50%", "99%")}
    return Load(float(rate[1]) if rate else 0.0, times["50%"], times["99%"], count, memory_early, memory)


def _seconds(report: str, part: str) -> float:
    found = re.search(rf"^\s+{part}\s+([\d.]+)(us|ms|s|m)$", report, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk gives no {part} of the latency: {report}")
    return float(found[1]) * _UNITS[found[2]]


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
