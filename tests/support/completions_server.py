"""A small server of `/v1/completions` over a transformers model, with the log-probabilities that the model gives.

It can answer as the servers do that there are, and fail as they do.
"""

import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

OPENAI_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "logprobs"}


class CompletionsServer:
    """A model behind `/v1/completions`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, for texts of tokens.
        like: `vllm`, which gives the tokens that are asked for by ids; `strict`, the same where as many most probable
            ones are asked for, up to 20; `old_vllm`, which names tokens by ids, the 20 most probable ones at most and
            the one that was drawn; `sglang`, which passes over the ids, and names tokens by their texts, as many as
            are asked for; `vocabulary`, the same with the texts of the vocabulary; `openai`, which refuses fields of
            others, and gives the 5 most probable ones by their texts; `llama`, which gives as many as are asked for,
            with ids, in its own form.
        longest: the most tokens of a prompt.
        key: the key that it asks for.
    """

    def __init__(self, model, tokenizer, like="vllm", *, longest=10_000, key=None):
        self.model, self.tokenizer, self.like, self.longest, self.key = model, tokenizer, like, longest, key
        self.requests = []  # what came in, in order
        self.failures = deque()  # what is done to the next requests instead: status, words and headers, or a function
        self.delay = lambda number: 0.0  # seconds that the nth request takes longer
        self.under_way = self.most_under_way = 0
        self.replace = lambda answer: answer
        self._draw = torch.Generator().manual_seed(0)
        self._lock = threading.Lock()

    @contextmanager
    def running(self):
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # which would wait between headers and body

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with served._lock:
                    number = len(served.requests)
                    served.requests.append(body)
                    served.under_way += 1
                    served.most_under_way = max(served.most_under_way, served.under_way)
                    failure = served.failures.popleft() if served.failures else None
                try:
                    time.sleep(served.delay(number))
                    if callable(failure):
                        failure(self)
                        return
                    if failure is not None:
                        self.send(*failure)
                        return
                    if served.key is not None and self.headers["Authorization"] != f"Bearer {served.key}":
                        self.send(401, f"Incorrect API key provided: {self.headers['Authorization']}")
                        return
                    if self.path != "/v1/completions":
                        self.send(404, f"There is nothing at {self.path}")
                        return
                    self.send(*served.answer(body))
                finally:
                    with served._lock:
                        served.under_way -= 1

            def send(self, status, answer, headers=()):
                body = {"error": {"message": answer, "code": status}} if isinstance(answer, str) else answer
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, body):
        asked, top = body.get("logprob_token_ids"), body["logprobs"]
        if len(body["prompt"]) > self.longest:
            words = f"This model's maximum context length is {self.longest} tokens, not {len(body['prompt'])}."
            return 400, words
        if self.like == "openai" and set(body) - OPENAI_FIELDS:
            return 400, f"Unrecognized request argument supplied: {min(set(body) - OPENAI_FIELDS)}"
        if self.like == "strict" and asked is not None and top != len(asked):
            return 400, f"logprobs={top} must be the number of logprob_token_ids, {len(asked)}."
        limit = {"openai": 5, "old_vllm": 20, "vllm": 20, "strict": 20}.get(self.like)
        if limit is not None and top > limit:
            return 400, f"Requested sample logprobs of {top}, which is greater than max allowed: {limit}"
        if self.like == "vllm" and asked is not None and len(asked) > 128:
            return 400, f"At most 128 logprob_token_ids, got {len(asked)}"

        with self._lock, torch.inference_mode():
            logits = self.model(torch.tensor([body["prompt"]])).logits[0, -1].float()
            log_probs = (logits / body["temperature"]).log_softmax(-1)
            drawn = torch.multinomial(log_probs.exp(), 1, generator=self._draw).item()
        best = log_probs.topk(min(top, len(log_probs))).indices.tolist()
        if self.like == "llama":
            entry = self.llama_entry(drawn, log_probs)
            entry["top_logprobs"] = [self.llama_entry(token, log_probs) for token in best]
            logprobs = {"content": [entry]}
        else:
            tokens = asked if self.like in ("vllm", "strict") and asked is not None else best
            by_id = self.like in ("vllm", "strict", "old_vllm") and body.get("return_tokens_as_token_ids")
            name = (lambda token: f"token_id:{token}") if by_id else self.text
            logprobs = {
                "tokens": [name(drawn)],
                "token_logprobs": [log_probs[drawn].item()],
                "top_logprobs": [{name(token): max(log_probs[token].item(), -9999.0) for token in [drawn, *tokens]}],
            }
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        choices = [{"index": 0, "logprobs": logprobs}]
        return 200, self.replace({"object": "text_completion", "choices": choices, "usage": usage})

    def text(self, token):
        if self.like == "vocabulary":
            return self.tokenizer.convert_ids_to_tokens(token)
        return self.tokenizer.decode([token])

    def llama_entry(self, token, log_probs):
        return {"id": token, "token": self.text(token), "bytes": [], "logprob": log_probs[token].item()}


def drop(handler):
    """Break the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def stall(seconds):
    """Answer nothing for a while, then break the connection."""

    def fail(handler):
        time.sleep(seconds)
        drop(handler)

    return fail
