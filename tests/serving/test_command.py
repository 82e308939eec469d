"""`raft-peft serve`: its mistakes, and its end."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx2 import Client, ConnectError

from raft_peft.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/moon"], "moon"),
        (["{stars}", "--seconds", "0"], "`--seconds 0.0` lets nothing through"),
        (["{stars}", "--adapter", "stars={tickets}"], "Two models are named 'stars'"),
        (["{stars}", "--api-key-file", "{tmp}/key"], "The API key is empty"),
    ],
)
def test_mistakes_are_one_line(words, message, folders, tmp_path, capsys):
    (tmp_path / "key").write_text("\n")
    assert main(["serve", *(word.format(tmp=tmp_path, **folders) for word in words)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_what_was_taken_is_answered_when_it_is_stopped(folders):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "raft_peft.cli", "serve", folders["stars"], "--port", str(port), "--no-page"]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        client = Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        while True:
            try:
                client.get("/health")
                break
            except ConnectError:
                assert process.poll() is None
                time.sleep(0.1)
        assert client.get("/").status_code == 404
        body = {"prompts": [f"Review: number {number} is fine. Stars:" for number in range(1000)]}
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(client.post, "/v1/predict", json=body)
            while client.get("/health").json()["waiting_prompts"] == 0 and not asked.done():
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            answer = asked.result()
        assert answer.status_code == 200 and len(answer.json()["predictions"]) == 1000
        process.wait(30)
    with pytest.raises(ConnectError):
        client.get("/health")
