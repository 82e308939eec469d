"""Servers as the tests run them."""

import threading
import time

import uvicorn
from httpx2 import Client

TICKETS = {
    "urgency": {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "this week", "today"]},
    "refund": {"type": "noul", "instructions": "Is a refund asked for?"},
    "team": {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "payments", "other": None}},
    "days": {"type": "number", "instructions": "In how many days?", "criteria": [0, 1, 2, 3]},
}


class Served:
    """An application on a port of its own, on a thread."""

    def __init__(self, app):
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = Client(base_url=self.url, timeout=60)

    def stop(self):
        self.server.should_exit = True
        self.thread.join()
