"""Answers of a server that are not to be trusted, too slow or without end, and secrets in what is said of them."""

import base64
import logging
import time
import traceback
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from support.completions_server import drop

from raft_peft.prediction.remote import completions_api
from raft_peft.prediction.remote.predictor import RemoteRegressionPredictor

GRID = [0, 1, 2, 3, 4]
PROMPTS = [f"Rate {item} from 0 to 4, the score is" for item in ("tea", "a cup of hot tea", "soup")]


def changed(change):
    """What replaces an answer by itself, with something changed in place."""

    def replace(answer):
        change(answer)
        return answer

    return replace


class TestWhoseAnswerItIs:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda answer: answer["choices"][0].update(index=3), r"index 0, and the answers have the indices \[3\]"),
            (lambda answer: answer.update(choices=answer["choices"] * 2), r"have the indices \[0, 0\]"),
            (lambda answer: answer["usage"].update(prompt_tokens=99), r"counts 99 tokens in a prompt of \d+\. .*add"),
            (
                lambda answer: answer["choices"][0]["logprobs"]["tokens"].append("token_id:1"),
                "one token was asked for, and it has the log-probabilities of 2",
            ),
        ],
        ids=["index", "two", "tokens of the prompt", "tokens of the answer"],
    )
    def test_one_to_another_prompt_is_refused(self, change, words, serve):
        served, remote = serve()
        served.replace = changed(change)
        with pytest.raises(ConnectionError, match=rf"Row 0 .*does not belong to the prompt that was sent: .*{words}"):
            remote.predict(PROMPTS)

    def test_the_one_with_the_index_of_the_prompt_is_taken(self, serve, local):
        served, remote = serve()
        other = {"index": 1, "logprobs": {"tokens": ["x"], "token_logprobs": [0.0], "top_logprobs": [{"x": 0.0}]}}
        served.replace = lambda answer: {**answer, "choices": [other, *answer["choices"]]}
        np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=1e-5)

    @pytest.mark.parametrize("body", [b"[" * 100_000, b'{"choices": ' * 100_000])
    def test_nested_without_end(self, body, serve):
        served, remote = serve()
        served.replace = lambda answer: body
        with pytest.raises(ConnectionError, match="no JSON"):
            remote.predict(PROMPTS)


class TestNull:
    """Null is the log-probability of what is impossible, since JSON has no minus infinity."""

    @pytest.mark.parametrize("like", ["vllm", "old_vllm", "llama"])
    def test_is_a_probability_of_zero(self, like, serve, tokenizer):
        served, remote = serve(like)
        two = tokenizer.convert_tokens_to_ids("Ġ2")

        def to_null(answer):
            logprobs = answer["choices"][0]["logprobs"]
            if like == "llama":
                for one in logprobs["content"][0]["top_logprobs"]:
                    one["logprob"] = None if one["id"] == two else one["logprob"]
            elif f"token_id:{two}" in logprobs["top_logprobs"][0]:
                logprobs["top_logprobs"][0][f"token_id:{two}"] = None

        expected = remote.predict_distribution(PROMPTS).probs
        expected[:, 2] = 0.0
        served.replace = changed(to_null)
        found = remote.predict_distribution(PROMPTS)
        torch.testing.assert_close(found.probs, expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(remote.predict(PROMPTS), (expected @ torch.arange(5.0)).numpy(), atol=1e-5)
        if like == "vllm":
            assert not found.missing.any()
            assert (found.error_bound() == 0).all()

    def test_of_the_whole_grid_leaves_nothing_to_renormalise(self, serve):
        served, remote = serve(renormalize=True)

        def to_null(answer):
            logprobs = answer["choices"][0]["logprobs"]
            logprobs["top_logprobs"] = [dict.fromkeys(logprobs["top_logprobs"][0])]
            logprobs["token_logprobs"] = [None]

        served.replace = changed(to_null)
        assert np.isnan(remote.predict(PROMPTS)).all()


class TestBounds:
    def drip(self, whole, pause):
        def fail(handler):
            try:
                for byte in whole:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    time.sleep(pause)
            except OSError:
                pass
            drop(handler)

        return fail

    @pytest.mark.parametrize(
        "whole",
        [b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b" " * 900, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 900],
        ids=["body", "headers"],
    )
    def test_an_answer_in_drops_ends_at_the_deadline(self, whole, serve):
        served, remote = serve(timeout=0.5, max_retries=0)
        served.failures.append(self.drip(whole, 0.05))
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match=r"Row 0 .*did not give a whole answer within 0\.5 seconds"):
            remote.predict(PROMPTS)
        assert time.monotonic() - begin < 5
        assert np.isfinite(remote.predict(PROMPTS)).all()

    def test_an_answer_without_end_is_not_kept(self, serve, monkeypatch):
        monkeypatch.setattr(completions_api, "_LARGEST_ANSWER", 2**20)
        served, remote = serve(max_retries=0)
        sent = []

        def flood(handler):
            handler.send_response(200)
            handler.send_header("Content-Length", str(2**40))
            handler.end_headers()
            try:
                while len(sent) < 1000:
                    handler.wfile.write(b" " * 2**20)
                    sent.append(1)
            except OSError:
                pass
            drop(handler)

        served.failures.append(flood)
        with pytest.raises(ConnectionError, match="answered 200 with more than 1 MiB"):
            remote.predict(PROMPTS)
        assert len(sent) < 100


class TestPassword:
    @pytest.mark.parametrize("password", ["s3cret-word", "p%40ss%2Fword"])
    def test_is_shown_nowhere(self, password, serve, tokenizer, caplog):
        caplog.set_level(logging.DEBUG)
        served, plain = serve()
        url = plain.base_url.replace("http://", f"http://me:{password}@") + "?key=QUERY-SECRET"
        remote = RemoteRegressionPredictor(url, "stars", GRID, tokenizer=tokenizer, max_retries=0)
        said = [repr(remote)]
        basic = base64.b64encode(f"me:{unquote(password)}".encode()).decode()
        words = f"refused Basic {basic} me:{password} me:{unquote(password)} key=QUERY-SECRET"
        for failure in ((401, words), (400, words), (503, words), drop, (200, b"no JSON " + words.encode())):
            served.failures.extend([failure] * 5)
            with pytest.raises((ValueError, ConnectionError)) as caught:
                remote.predict(PROMPTS[:1])
            served.failures.clear()
            said.append("".join(traceback.format_exception(caught.value)))
        assert "HTTP Request: POST" in caplog.text
        for text in said:
            assert "QUERY-SECRET" not in text
        for text in [*said, *(record.getMessage() for record in caplog.records)]:
            for secret in (password, unquote(password), basic):
                assert secret not in text

    @pytest.mark.parametrize("url", ["ftp://me:SECRET@host", "me:SECRET@host", "http://me:SEC/RET@host:x/v1?k=SECRET"])
    def test_nor_in_what_is_said_of_a_url_that_is_none(self, url, tokenizer):
        with pytest.raises(ValueError, match="is not a URL") as caught:
            RemoteRegressionPredictor(url, "stars", GRID, tokenizer=tokenizer)
        assert "SEC" not in str(caught.value)
        assert "host" in str(caught.value)
        assert caught.value.__cause__ is None
