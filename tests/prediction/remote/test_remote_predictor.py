"""Numbers from a model behind a server equal those of the same model here, whatever the server can and what fails."""

import asyncio
import json
import logging
import re
import socket
import threading
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_byte_level, make_sentencepiece, make_tiny_llama
from support.completions_server import drop, stall
from support.training import lora, make

from raft_peft import RegressionPredictor
from raft_peft.prediction.remote import completions_api
from raft_peft.prediction.remote.predictor import RemoteRegressionPredictor

GRID = [0, 1, 2, 3, 4]
PROMPTS = [f"Rate {item} from 0 to 4, the score is" for item in ("tea", "a cup of hot tea", "soup", "item 27", "1")]
EXACT = ["vllm", "strict"]
KEY = "sk-doNotWriteThisDownAnywhere"


class TestServers:
    @pytest.mark.parametrize("like", ["vllm", "strict", "llama", "sglang", "vocabulary", "old_vllm", "openai"])
    def test_numbers_are_those_of_the_model_here(self, like, serve, local):
        _, remote = serve(like)
        expected, found = local.predict_distribution(PROMPTS), remote.predict_distribution(PROMPTS)
        returned = ~found.missing
        assert found.log_probs.shape == (5, 5)
        assert returned.any()
        torch.testing.assert_close(found.log_probs[returned], expected.log_probs[returned], atol=1e-4, rtol=0)
        away = np.abs(remote.predict(PROMPTS) - local.predict(PROMPTS))
        assert (away <= found.error_bound().numpy() + 1e-4).all()
        if like not in ("openai", "old_vllm"):  # which give no more than 5 and 20 tokens
            np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=4e-3 + 1e-4)
        if like in EXACT:
            assert returned.all()
            np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=1e-5)

    def test_given_reasonings(self, serve, tiny_llama, tokenizer):
        _, remote = serve(score_prefix="\n[RESULT] ")
        here = RegressionPredictor(tiny_llama, tokenizer, GRID, score_prefix="\n[RESULT] ")
        rows = [{"prompt": prompt, "reasoning": "It is hot."} for prompt in PROMPTS]
        np.testing.assert_allclose(remote.predict(rows), here.predict(rows), atol=1e-5)
        with pytest.raises(ValueError, match="row 0: The row has 2 reasonings"):
            remote.predict([{"prompt": "Rate tea:", "reasoning": ["a", "b"]}])

    @pytest.mark.parametrize(
        "options", [{"renormalize": True}, {"decision": "median"}, {"decision": "mode"}, {"decision": "quantile:0.9"}]
    )
    def test_decisions(self, options, serve, tiny_llama, tokenizer):
        _, remote = serve(**options)
        expected = RegressionPredictor(tiny_llama, tokenizer, GRID, **options).predict(PROMPTS)
        np.testing.assert_allclose(remote.predict(PROMPTS), expected, atol=1e-5)

    def test_exactly_the_tokens_of_the_grid_are_asked_for(self, serve, tokenizer):
        served, remote = serve("vllm")
        remote.predict(PROMPTS)
        ids = [tokenizer.convert_tokens_to_ids(f"Ġ{value}") for value in GRID]
        assert len(served.requests) == len(PROMPTS) + 1
        assert all(request["logprob_token_ids"] == ids for request in served.requests)
        assert sorted(request["prompt"] for request in served.requests[1:]) == sorted(tokenizer(PROMPTS).input_ids)
        assert {request["max_tokens"] for request in served.requests} == {1}

    def test_predictions_and_distribution_from_the_same_requests(self, serve, local):
        served, remote = serve("vllm")
        predictions, distribution = remote.predict(PROMPTS, return_distribution=True)
        assert len(served.requests) == len(PROMPTS) + 1
        np.testing.assert_allclose(predictions, local.predict(PROMPTS), atol=1e-5)
        expected = local.predict_distribution(PROMPTS).log_probs
        torch.testing.assert_close(distribution.log_probs, expected, atol=1e-4, rtol=0)
        assert not distribution.missing.any()

    def test_many_threads_ask_through_one_predictor(self, serve, local):
        """From the first request on, by which it is found out how the server can be asked."""
        _, remote = serve(concurrency=2)
        expected, wrong, start = local.predict(PROMPTS), [], threading.Barrier(8)

        def ask(number):
            start.wait()
            for turn in range(6):
                index = (number + turn) % len(PROMPTS)
                try:
                    np.testing.assert_allclose(remote.predict([PROMPTS[index]]), expected[[index]], atol=1e-5)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_how_to_ask_is_found_out_once(self, serve):
        served, remote = serve("openai")
        remote.predict(PROMPTS)
        assert len(served.requests) == 5 + len(PROMPTS)
        remote.predict(PROMPTS)
        assert len(served.requests) == 5 + 2 * len(PROMPTS)

    @pytest.mark.parametrize("grid", [GRID, [0, 1]])
    def test_a_server_whose_most_probable_tokens_are_those_of_the_grid(self, grid, serve, tiny_llama, tokenizer):
        """It passes over the ids that it is asked for, which must not be taken for an answer to them."""
        head = torch.nn.Linear(32, len(tokenizer))
        head.weight.data = tiny_llama.lm_head.weight.data
        head.bias.data.zero_()
        for value in grid:
            head.bias.data[tokenizer.convert_tokens_to_ids(f"Ġ{value}")] = 30.0
        tiny_llama.lm_head = head
        for like in ("llama", "old_vllm"):
            served, remote = serve(like, grid=grid)
            expected = RegressionPredictor(tiny_llama, tokenizer, grid).predict(PROMPTS)
            np.testing.assert_allclose(remote.predict(PROMPTS), expected, atol=1e-4)
            assert "logprob_token_ids" in served.requests[0]
            assert not any("logprob_token_ids" in request for request in served.requests[1:])

    def test_more_numbers_than_a_request_takes(self, serve, tokenizer):
        tokenizer.add_tokens([f"<{value}>" for value in range(130)])
        model = make_tiny_llama(tokenizer)
        grid = {value: f"<{value}>" for value in range(130)}
        expected = RegressionPredictor(model, tokenizer, grid, separator="").predict(PROMPTS)
        for like, requests in (("vllm", 2), ("strict", 7)):
            served, remote = serve(like, model=model, grid=grid, separator="")
            np.testing.assert_allclose(remote.predict(PROMPTS), expected, atol=1e-4)
            assert len(served.requests) >= requests * len(PROMPTS)

    def test_a_tokenizer_with_tokens_for_single_bytes(self, serve):
        tokenizer = make_sentencepiece()
        model = make_tiny_llama(tokenizer)
        expected = RegressionPredictor(model, tokenizer, GRID).predict(PROMPTS)
        _, remote = serve("sglang", model=model, its_tokenizer=tokenizer)
        np.testing.assert_allclose(remote.predict(PROMPTS), expected, atol=5e-3)


class TestWhatIsNotReturned:
    def test_counts_as_zero_and_the_error_is_bounded(self, serve, local, caplog):
        _, remote = serve("openai")
        with caplog.at_level(logging.INFO, "raft_peft"):
            found = remote.predict_distribution(PROMPTS)
        expected = local.predict_distribution(PROMPTS)
        assert found.missing.any()
        assert (found.probs[found.missing] == 0).all()
        missing = torch.where(found.missing, expected.probs, 0.0)
        assert (missing <= found.ceiling[:, None] + 1e-6).all()
        assert (missing.sum(-1) <= found.rest + 1e-6).all()
        [said] = [
            record.getMessage() for record in caplog.records if record.name == "raft_peft.prediction.remote.predictor"
        ]
        share, bound = re.search(r"For ([\d.]+)% of the rows .* by ([\d.e-]+) at most", said).groups()
        assert float(share) == pytest.approx(100 * found.missing.any(-1).float().mean().item(), abs=0.06)
        assert float(bound) == pytest.approx(found.error_bound().max().item(), rel=0.06)
        caplog.clear()
        remote.predict(PROMPTS)
        assert not caplog.records

    def test_the_drawn_token_is_none_of_the_most_probable(self):
        """It may be the least of all that were returned, and bounds nothing."""
        logprobs = {"tokens": ["z"], "token_logprobs": [-9.0], "top_logprobs": [{"a": -1.0, "b": -2.0}]}
        found = completions_api._next_token({"choices": [{"logprobs": logprobs}]})
        assert found.ceiling == pytest.approx(np.exp(-2))
        assert found.rest == pytest.approx(1 - np.exp(-1) - np.exp(-2) - np.exp(-9))

    def test_is_asked_for_again(self, serve, local):
        served, remote = serve("llama")
        np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=4e-3 + 1e-4)
        assert {request["logprobs"] for request in served.requests} == {1, 20, 200}
        assert remote.predict_distribution(PROMPTS).error_bound().max() <= 4e-3

    def test_is_not_asked_for_again_where_the_server_gives_no_more(self, serve):
        served, remote = serve("old_vllm", concurrency=1)
        remote.predict(PROMPTS)
        asked = [request["logprobs"] for request in served.requests]
        assert asked.count(200) == 1
        assert asked.count(20) == len(PROMPTS) + 1

    def test_no_number_of_the_grid_at_all(self, serve, tiny_llama, tokenizer):
        for name in ("Ġ0", "Ġ1", "Ġ2", "Ġ3", "Ġ4"):
            tiny_llama.lm_head.weight.data[tokenizer.convert_tokens_to_ids(name)] = 0.0
        _, remote = serve("openai")
        _, renormalised = serve("openai", renormalize=True)
        found = remote.predict_distribution(PROMPTS)
        lost = found.missing.all(-1).numpy()
        assert lost.any()
        assert (remote.predict(PROMPTS)[lost] == 0).all()
        assert np.isnan(renormalised.predict(PROMPTS)[lost]).all()
        assert (found.error_bound(renormalize=True).numpy()[lost] == 4).all()

    def test_texts_of_several_tokens(self, serve, tiny_llama):
        tokenizer = make_byte_level()
        other, number = tokenizer.convert_tokens_to_ids(["ĠRate", "Ġ3"])
        decode = tokenizer.batch_decode
        tokenizer.batch_decode = lambda ids, **options: [
            decode([[number]], **options)[0] if one == [other] else text
            for one, text in zip(ids, decode(ids, **options), strict=True)
        ]
        _, remote = serve("openai", its_tokenizer=tokenizer)
        with pytest.raises(ValueError, match=r"' 3' is that of 2 tokens.*returns the ids"):
            remote.predict(PROMPTS)
        _, remote = serve("llama", its_tokenizer=tokenizer)
        assert np.isfinite(remote.predict(PROMPTS)).all()

    def test_another_model_s_tokenizer(self, serve, word_level):
        _, remote = serve("openai", tokenizer=word_level)
        with pytest.raises(ValueError, match="are not tokens of the tokenizer here"):
            remote.predict(["the score is"])


class TestConcurrency:
    def test_numbers_come_back_in_order(self, serve, local):
        served, remote = serve(concurrency=8)
        prompts = [f"item {number} is" for number in range(60)]
        served.delay = lambda number: 0.03 * (number % 5)
        np.testing.assert_allclose(remote.predict(prompts, show_progress=False), local.predict(prompts), atol=1e-5)
        assert 2 < served.most_under_way <= 8

    def test_chunks(self, serve, local):
        _, remote = serve()
        prompts = [f"item {number} is" for number in range(10)]
        readings = list(remote.read(iter(prompts), chunk_size=4))
        assert [len(reading.predictions) for reading in readings] == [4, 4, 2]
        found = torch.cat([reading.predictions for reading in readings]).numpy()
        np.testing.assert_allclose(found, local.predict(prompts), atol=1e-5)

    def test_within_a_running_event_loop(self, serve, local):
        _, remote = serve()

        async def notebook():
            return remote.predict(PROMPTS)

        np.testing.assert_allclose(asyncio.run(notebook()), local.predict(PROMPTS), atol=1e-5)

    def test_a_reader_that_stops_early(self, serve):
        served, remote = serve(concurrency=2)
        readings = remote.read([f"item {number} is" for number in range(40)], chunk_size=4)
        next(readings)
        readings.close()
        assert len(served.requests) == 5

    def test_no_prompts(self, serve):
        served, remote = serve()
        assert remote.predict([]).shape == (0,)
        assert len(remote.predict_distribution([])) == 0
        assert not served.requests


class TestFailures:
    @pytest.mark.parametrize(
        "failure",
        [
            (503, "Loading model"),
            (500, "out of memory"),
            (429, "slow down"),
            (502, b"<html>Bad Gateway</html>"),
            drop,
            stall(0.6),
        ],
        ids=["503", "500", "429", "502", "dropped", "timeout"],
    )
    def test_what_passes_is_tried_again(self, failure, serve, local):
        served, remote = serve(timeout=0.4)
        served.failures.extend([failure] * 3)
        np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=1e-5)
        assert len(served.requests) == len(PROMPTS) + 1 + 3

    @pytest.mark.parametrize("pause", ["1", formatdate(time.time() + 2, usegmt=True)], ids=["seconds", "date"])
    def test_the_server_says_when(self, pause, serve):
        served, remote = serve()
        if pause != "1":
            pause = formatdate(time.time() + 2, usegmt=True)
        served.failures.append((429, "slow down", {"Retry-After": pause}))
        begin = time.monotonic()
        remote.predict(["the score is"])
        assert 0.9 < time.monotonic() - begin < 5

    def test_what_does_not_pass_names_the_row_and_the_words(self, serve):
        served, remote = serve(max_retries=2)
        remote.predict(PROMPTS[:1])
        served.failures.extend([(503, "The cluster is asleep")] * 1000)
        with pytest.raises(ConnectionError, match=r"Row 100 .*answered 503: The cluster is asleep \(2 retries\)"):
            list(remote.read([f"item {number} is" for number in range(400)], first_row=100))
        then = len(served.requests)
        time.sleep(0.2)
        # Behind the error nothing goes on but the requests that were under way.
        assert len(served.requests) - then <= remote.concurrency

    def test_nobody_there(self, tokenizer):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        remote = RemoteRegressionPredictor(url, "stars", GRID, tokenizer=tokenizer, max_retries=1)
        with pytest.raises(ConnectionError, match=r"Row 0 .*/v1/completions did not answer: ConnectError .*1 retries"):
            remote.predict(PROMPTS)

    def test_prompts_that_the_server_refuses_are_named_and_the_others_asked(self, serve, tokenizer):
        served, remote = serve(server={"longest": 30})
        prompts = ["the score is"] * 10
        prompts[0] = prompts[3] = prompts[7] = "the score is " * 30
        with pytest.raises(ValueError) as caught:
            remote.predict(prompts)
        said = str(caught.value).splitlines()
        assert said[0].startswith("3 row(s)")
        assert [line.split(":")[0].strip() for line in said[1:]] == ["row 0", "row 3", "row 7"]
        assert all("maximum context length is 30 tokens" in line for line in said[1:])
        assert sum(request["prompt"] == tokenizer("the score is").input_ids for request in served.requests) == 8

    def test_a_server_that_refuses_everything(self, serve):
        served, remote = serve(server={"longest": 1})
        with pytest.raises(ValueError, match=r"5 row\(s\)"):
            remote.predict([f"item {number} is" for number in range(400)])
        assert len(served.requests) == 5 * 5

    @pytest.mark.parametrize(("failure", "words"), [((404, "no model `stars`"), "404: no model `stars`")])
    def test_what_asking_again_cannot_help(self, failure, words, serve):
        served, remote = serve()
        served.failures.append(failure)
        with pytest.raises(ConnectionError, match=words):
            remote.predict(PROMPTS)
        assert len(served.requests) == 1

    @pytest.mark.parametrize(
        ("replaced", "words"),
        [
            ({"choices": [{"text": "4", "logprobs": None}]}, "without log-probabilities"),
            ({"choices": []}, "without log-probabilities"),
            (["what"], "without log-probabilities"),
            (b"<html>hello</html>", "no JSON"),
            (
                {"choices": [{"logprobs": {"tokens": ["4"], "token_logprobs": [3.0], "top_logprobs": [{"4": 3.0}]}}]},
                "sum to 2.72.*raw_logprobs",
            ),
        ],
    )
    def test_answers_that_are_of_no_use(self, replaced, words, serve):
        served, remote = serve()
        served.replace = lambda answer: replaced
        with pytest.raises(ConnectionError, match=words):
            remote.predict(PROMPTS)

    def test_a_token_drawn_without_log_probabilities_is_drawn_again(self, serve, local):
        served, remote = serve("llama")
        served.failures.append((200, {"choices": [{"logprobs": None}]}))
        np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=5e-3)


class TestKey:
    def test_is_sent_and_shown_nowhere(self, serve, caplog, monkeypatch):
        caplog.set_level(logging.DEBUG)
        _, remote = serve(server={"key": KEY}, api_key=KEY)
        assert np.isfinite(remote.predict(PROMPTS)).all()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        _, remote = serve(server={"key": KEY})
        assert np.isfinite(remote.predict(PROMPTS)).all()
        _, wrong = serve(server={"key": "another"})
        with pytest.raises(ConnectionError, match=r"401: Incorrect API key provided: Bearer \*\*\*") as caught:
            wrong.predict(PROMPTS)
        for shown in (repr(remote), str(caught.value), *(record.getMessage() for record in caplog.records)):
            assert KEY not in shown

    def test_is_not_sent_where_it_is_empty(self, serve, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        _, remote = serve(server={"key": KEY}, api_key="")
        with pytest.raises(ConnectionError, match="provided: None"):
            remote.predict(PROMPTS)


class TestPrompts:
    def test_chats_rows_and_long_prompts(self, serve, tiny_llama, tokenizer):
        chat = [{"role": "user", "content": "Rate it"}]
        prompts = [chat, {"prompt": chat}, {"prompt": "the score is"}, "the score is ", "the score is " * 9]
        _, remote = serve(max_length=12, separator=" ")
        local = RegressionPredictor(tiny_llama, tokenizer, GRID, max_length=12, separator=" ")
        np.testing.assert_allclose(remote.predict(prompts), local.predict(prompts), atol=1e-5)

    @pytest.mark.parametrize("prompts", ["one prompt", {"prompt": "x"}, [{"role": "user", "content": "x"}]])
    def test_one_prompt_that_is_not_in_a_list(self, prompts, serve):
        _, remote = serve()
        with pytest.raises(ValueError, match=r"must be a list of .* pass a list of one"):
            remote.predict(prompts)

    def test_the_tokenizer_of_a_folder(self, serve, tokenizer, local, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        for name in (tmp_path, str(tmp_path)):
            _, remote = serve(tokenizer=name)
            np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=1e-5)

    def test_numbers_of_several_tokens_are_refused(self, serve):
        served, remote = serve(grid=[0, 0.25])
        with pytest.raises(ValueError, match=r"row 0: The number '0.25' is . tokens .*add_number_tokens"):
            remote.predict(PROMPTS)
        assert not served.requests


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"method": "pooled"}, "'pooled' has a head"),
            ({"method": "learnable_raft"}, "'learnable_raft' has a head"),
            ({"method": "ce"}, "method='rail'"),
            ({"method": "rail", "num_samples": 8}, "Sampled"),
            ({"attention": "bidirectional"}, "causal"),
            ({"decision": "best"}, "no decision rule"),
            ({"concurrency": 0}, "concurrency=0"),
            ({"max_retries": -1}, "max_retries=-1"),
            ({"timeout": 0}, "timeout=0"),
        ],
    )
    def test_refused(self, settings, words, tokenizer):
        with pytest.raises(ValueError, match=words):
            RemoteRegressionPredictor("http://localhost/v1", "stars", GRID, tokenizer=tokenizer, **settings)

    @pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "", "http://", "http://[::1/v1"])
    def test_urls_that_are_none(self, url, tokenizer):
        with pytest.raises(ValueError, match="Example: base_url"):
            RemoteRegressionPredictor(url, "stars", GRID, tokenizer=tokenizer)

    @pytest.mark.parametrize(
        ("url", "asked"),
        [
            ("http://host:8000", "http://host:8000/v1/completions"),
            ("http://host:8000/", "http://host:8000/v1/completions"),
            ("https://host/v1/", "https://host/v1/completions"),
            ("https://host/proxy/v2", "https://host/proxy/v2/completions"),
        ],
    )
    def test_urls(self, url, asked):
        assert completions_api.url_of(url, "completions") == asked


class TestFromSaved:
    def save(self, tiny_llama, tokenizer, tmp_path, rows, **options):
        tiny_llama.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        trainer = make(
            str(tmp_path / "base"),
            tokenizer,
            tmp_path / "out",
            rows,
            options={"max_steps": 3, "learning_rate": 1e-2, **options},
            peft_config=lora(),
        )
        trainer.train()
        trainer.save_model()
        return tmp_path / "out"

    def test_an_adapter_scores_the_same_behind_a_server(self, tiny_llama, tokenizer, tmp_path, rows, serve):
        settings = {"renormalize": True, "max_length": 16}
        folder = self.save(tiny_llama, tokenizer, tmp_path, rows, **settings)
        local = RegressionPredictor.from_pretrained(folder)
        served, _ = serve(model=local.model)
        with served.running() as url:
            remote = RemoteRegressionPredictor.from_saved(url, "stars", folder)
            assert remote.settings.renormalize
            prompts = [*PROMPTS, PROMPTS[0] * 5]
            np.testing.assert_allclose(remote.predict(prompts), local.predict(prompts), atol=1e-5)
            plain = RemoteRegressionPredictor.from_saved(url, "stars", folder, renormalize=False, decision="mode")
            expected = RegressionPredictor.from_pretrained(folder, renormalize=False, decision="mode").predict(prompts)
            np.testing.assert_allclose(plain.predict(prompts), expected, atol=1e-5)

    def test_the_page_on_serving(self, tiny_llama, tokenizer, tmp_path, rows, serve, monkeypatch):
        """The code of docs/serving.md runs as it is written, but for the server's address."""
        self.save(tiny_llama, tokenizer, tmp_path, rows).rename(tmp_path / "stars-raft")
        monkeypatch.chdir(tmp_path)
        served, _ = serve(model=RegressionPredictor.from_pretrained("stars-raft").model)
        page = (Path(__file__).resolve().parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
        names: dict = {}
        with served.running() as url:
            for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
                exec(block.replace("http://localhost:8000/v1", url), names)
        assert names["stars"].shape == (2,)
        assert not names["distribution"].missing.any()

    def test_merged_weights(self, tiny_llama, tokenizer, tmp_path, rows, serve):
        folder = self.save(tiny_llama, tokenizer, tmp_path, rows)
        local = RegressionPredictor.from_pretrained(folder)
        expected = local.predict(PROMPTS)
        served, _ = serve(model=local.model.merge_and_unload())
        with served.running() as url:
            remote = RemoteRegressionPredictor.from_saved(url, "stars", folder)
            np.testing.assert_allclose(remote.predict(PROMPTS), expected, atol=1e-4)

    def test_cross_entropy_is_read_by_rail(self, tiny_llama, tokenizer, tmp_path, rows, serve):
        rows = [{**row, "label": float(round(row["label"]))} for row in rows]
        folder = self.save(tiny_llama, tokenizer, tmp_path, rows, method="ce")
        with pytest.raises(ValueError, match="method='rail'"):
            RemoteRegressionPredictor.from_saved("http://localhost/v1", "stars", folder)
        local = RegressionPredictor.from_pretrained(folder, method="rail")
        served, _ = serve(model=local.model)
        with served.running() as url:
            remote = RemoteRegressionPredictor.from_saved(url, "stars", folder, method="rail")
            np.testing.assert_allclose(remote.predict(PROMPTS), local.predict(PROMPTS), atol=1e-5)

    def test_heads_are_refused(self, tiny_llama, tokenizer, tmp_path, rows):
        folder = self.save(tiny_llama, tokenizer, tmp_path, rows, method="pooled")
        with pytest.raises(ValueError, match=r"'pooled' has a head.*Use RegressionPredictor"):
            RemoteRegressionPredictor.from_saved("http://localhost/v1", "stars", folder)

    def test_a_folder_without_configuration(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"has no raft_config.json.*save_model"):
            RemoteRegressionPredictor.from_saved("http://localhost/v1", "stars", tmp_path)

    def test_another_tokenizer_in_the_folder(self, tokenizer, word_level, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        ids = [[tokenizer.convert_tokens_to_ids(token)] for token in ("Ġ1", "Ġ2")]
        config = {"values": [1, 2], "texts": ["1", "2"], "token_ids": ids, "token_texts": [" 1", " 2"]}
        (tmp_path / "raft_config.json").write_text(json.dumps(config))
        assert RemoteRegressionPredictor.from_saved("http://localhost/v1", "stars", tmp_path).texts == ("1", "2")
        with pytest.raises(ValueError, match="Load the tokenizer that was saved"):
            RemoteRegressionPredictor.from_saved("http://localhost/v1", "stars", tmp_path, tokenizer=word_level)
