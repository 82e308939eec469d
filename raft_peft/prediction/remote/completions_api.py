"""`/completions` of OpenAI-compatible servers: the log-probabilities of the token that follows a prompt."""

from __future__ import annotations

import base64
import json
import math
import random
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

_TOKEN_ID = re.compile(r"token_id:(\d+)")
# With these a server refuses a request, and may take the same prompt asked for differently, or another prompt.
_REFUSED = (400, 413, 422)
# The seconds before a request is repeated: at first, at most, and at most where the server asks for a pause.
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_ASKED_FOR = 0.5, 30.0, 120.0
# What helps against a status, behind the server's own words.
_KEY = "Set the environment's OPENAI_API_KEY to the key of this server, or pass `api_key`."
_ROUTE = (
    "Look whether `base_url` is right, which usually ends in /v1, and whether the server has this route and a model "
    "of this name."
)
_CURES = {401: _KEY, 403: _KEY, 404: _ROUTE, 405: _ROUTE, 501: _ROUTE}
# llama-server gives no log-probabilities where the token that it draws is a part of a character.
_DRAWS = 3
_WORDS_SHOWN = 500
# The bytes of an answer. 2000 tokens with their log-probabilities take less than 1 MiB, a vocabulary less than 32.
_LARGEST_ANSWER = 32 * 2**20


class RefusedError(ValueError):
    """The server does not take this request. The message is in its words."""


class ServerError(ConnectionError):
    """The server cannot be reached, has failed, or answers with something that cannot be used."""


class NotFoundError(ServerError):
    """The server has no such route, or no such model."""


class StoppedError(Exception):
    """The connection was closed while a request waited for its next attempt."""


@dataclass(frozen=True)
class NextToken:
    """What a server says of the token that follows a prompt.

    Attributes:
        log_probs: log p in nats of each token that it names, by the token's id, or by its text where it gives no ids.
        ceiling: a probability that no other token exceeds, where the most probable ones were asked for.
        rest: the probability of all other tokens together.
    """

    log_probs: Mapping[int | str, float]
    ceiling: float
    rest: float

    @property
    def by_text(self) -> bool:
        return any(isinstance(token, str) for token in self.log_probs)

    @classmethod
    def of(cls, log_probs: Mapping[int | str, float], drawn: int | str) -> NextToken:
        """Of the most probable tokens and the one that was drawn, be it one of these or any other.

        Raises:
            ServerError: these are no log-probabilities.
        """
        total = math.fsum(math.exp(min(log_prob, 1.0)) for log_prob in log_probs.values())
        if not total < 1.01:
            raise ServerError(
                f"The server's log-probabilities are those of probabilities that sum to {total:.3g}. It must return "
                "log-probabilities over the whole vocabulary (vLLM: --logprobs-mode raw_logprobs, the default)."
            )
        most_probable = [log_prob for token, log_prob in log_probs.items() if token != drawn]
        rest = max(0.0, 1.0 - total)
        return cls(log_probs, min([rest, *(math.exp(log_prob) for log_prob in most_probable)]), rest)


class Connection:
    """A connection to a server, for several threads; a context manager.

    Args:
        base_url: up to and with `/v1`; where the URL ends behind the host, `/v1` is added.
        model: the name under which the server knows the model.
        api_key: sent as a bearer token; None or empty for none.
        timeout: seconds that a request may take, from connecting to the last byte of its answer.
        max_retries: how often a request is repeated that failed by itself (429, 5xx, timeouts, broken connections).
        connections: how many are kept open.
        route: behind the base URL, where requests are sent.

    Raises:
        ValueError: the URL is not one of http or https.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None,
        timeout: float,
        max_retries: int,
        connections: int,
        route: str = "completions",
    ):
        url = httpx2.URL(url_of(base_url, route))
        # The client logs the URL that it is given, so a password is handed to it apart.
        self._url = url.copy_with(userinfo=b"")
        # Messages show the URL without a password or a key that it may hold.
        self.shown = shown_url(base_url, route)
        self._secrets = _secrets_of(url, api_key)
        self._model = model
        self._timeout = timeout
        self._max_retries = max_retries
        self._stopped = threading.Event()
        self._client = httpx2.AsyncClient(
            auth=(url.username, url.password) if url.userinfo else None,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            # The deadline is that of the whole request, see `_send`.
            timeout=None,
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        self._opened = ExitStack()

    def __enter__(self) -> Connection:
        # Requests run in an event loop of their own, in which a deadline ends them wherever they are.
        self._portal = self._opened.enter_context(start_blocking_portal("asyncio"))
        self._opened.callback(self._portal.call, self._client.aclose)
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._opened.close()

    def next_token(self, prompt_ids: Sequence[int], top: int, **fields: Any) -> NextToken:
        """Ask for the most probable tokens behind a prompt.

        Args:
            prompt_ids: the prompt's tokens.
            top: how many.
            fields: others of the request, such as vLLM's.

        Raises:
            RefusedError: the server does not take the request.
            ServerError: anything else, after the retries that it allows.
        """
        request = {
            "model": self._model,
            "prompt": list(prompt_ids),
            "max_tokens": 1,
            # At these, servers that compute log-probabilities from what they draw from return the model's own.
            "temperature": 1.0,
            "top_p": 1.0,
            "logprobs": top,
            **fields,
        }
        for _ in range(_DRAWS):
            answer = self.post(request)
            mismatch = _mismatch(answer, len(prompt_ids))
            if mismatch is not None:
                raise ServerError(
                    f"{self.shown} gave an answer that does not belong to the prompt that was sent: {mismatch}."
                )
            found = _next_token(answer)
            if found is not None:
                return found
        raise ServerError(
            f"{self.shown} answered without log-probabilities: {self._without_secrets(answer)}. Use a server that "
            "returns them from /v1/completions, such as vLLM or llama.cpp's llama-server."
        )

    def post(self, request: Mapping[str, Any]) -> Any:
        """The answer to a request, as JSON. Raises as `next_token` does."""
        return self._answer("POST", request)

    def get(self) -> Any:
        """What the route holds, as JSON. Raises as `next_token` does."""
        return self._answer("GET", None)

    def _answer(self, method: str, request: Mapping[str, Any] | None) -> Any:
        pause = 0.0
        for attempt in range(self._max_retries + 1):
            if self._stopped.wait(pause):
                raise StoppedError
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                response = self._portal.call(self._send, method, request)
            except TimeoutError:
                words = f"{self.shown} did not give a whole answer within {self._timeout:g} seconds"
                cure = ". Look whether the server is at work, or set `timeout` to more."
                continue
            except httpx2.LocalProtocolError as error:
                # The error's own words are left out: they repeat a key that has a line break in it.
                raise ServerError(f"No request can be sent to {self.shown}: {type(error).__name__}.") from None
            except httpx2.RequestError as error:
                reason = self._without_secrets(f"{type(error).__name__} {error}".strip())
                words = f"{self.shown} did not answer: {reason}"
                cure = ". Look whether the server runs, and whether `base_url` is right."
                continue
            if 200 <= response.status < 300:
                return self._json(response)
            words = self._words(response)
            if response.status in _REFUSED:
                raise RefusedError(words)
            if response.status not in (408, 429) and (response.status < 500 or response.status == 501):
                cure = _CURES.get(response.status, "")
                words = f"{words.rstrip('.')}. {cure}" if cure else words
                raise NotFoundError(words) if cure == _ROUTE else ServerError(words)
            pause = _asked_for(response.headers, pause)
            cure = ""
        raise ServerError(f"{words} ({self._max_retries} retries){cure}")

    async def _send(self, method: str, request: Mapping[str, Any] | None) -> _Response:
        """One request and its answer.

        Raises:
            TimeoutError: the answer was not whole in time.
            ServerError: the answer is too large to be one.
            httpx2.RequestError: the server cannot be reached, or the connection broke.
        """
        with anyio.fail_after(self._timeout):
            async with self._client.stream(method, self._url, json=request) as response:
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _LARGEST_ANSWER:
                        raise ServerError(
                            f"{self.shown} answered {response.status_code} with more than "
                            f"{_LARGEST_ANSWER // 2**20} MiB. No log-probabilities take as much: is it a model "
                            "server's address?"
                        )
                return _Response(response.status_code, response.headers, bytes(body))

    def _json(self, response: _Response) -> Any:
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError):
            raise ServerError(f"{self._words(response)}. That is no JSON: is it a model server's address?") from None

    def _words(self, response: _Response) -> str:
        """What the server said, without the key, since some servers repeat it."""
        said: Any = response.body.decode(errors="replace")
        try:
            body = json.loads(response.body)
            said = body.get("error", body) if isinstance(body, dict) else body
            if isinstance(said, dict):
                said = said.get("message") or said.get("detail") or said
        except (ValueError, RecursionError):
            pass
        return f"{self.shown} answered {response.status}: {self._without_secrets(said)}"

    def _without_secrets(self, said: Any) -> str:
        words = str(said)
        for secret in self._secrets:
            words = words.replace(secret, "***")
        return words if len(words) <= _WORDS_SHOWN else f"{words[:_WORDS_SHOWN]} ..."


class _Response(NamedTuple):
    """What a server answered.

    Attributes:
        status: of HTTP.
        headers: by their names, in any case of letters.
        body: as it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def _secrets_of(url: httpx2.URL, api_key: str | None) -> list[str]:
    """What messages must not show, the longest first, as it may stand in them."""
    raw_password = url.userinfo.partition(b":")[2].decode(errors="replace")
    basic = base64.b64encode(f"{url.username}:{url.password}".encode()).decode() if raw_password else ""
    found = {api_key or "", url.password, raw_password, basic, url.query.decode(errors="replace")}
    return sorted(found - {""}, key=len, reverse=True)


def url_of(base_url: str, route: str) -> str:
    """Where a route of a server is.

    Raises:
        ValueError: the URL is not one of http or https.
    """
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        # Its words may repeat a part of a password.
        reason = "" if "@" in base_url else f": {error}"
        raise ValueError(f"base_url={_without_userinfo(base_url)!r} is not a URL{reason}. {_EXAMPLE}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url={_without_userinfo(base_url)!r} is not a URL of http or https. {_EXAMPLE}")
    path = url.path.rstrip("/")
    return str(url.copy_with(path=f"{path or '/v1'}/{route}"))


def shown_url(base_url: str, route: str) -> str:
    """The same without a password or a key that it may hold."""
    return str(httpx2.URL(url_of(base_url, route)).copy_with(userinfo=b"", query=None))


def _without_userinfo(base_url: str) -> str:
    """A URL that may be none, without what stands before its host, and without its query."""
    before, at, host = base_url.partition("?")[0].rpartition("@")
    return f"{before[: before.find('//') + 2] if '//' in before else ''}***@{host}" if at else host


_EXAMPLE = "Example: base_url='http://localhost:8000/v1'."


def _next_token(answer: Any) -> NextToken | None:
    """What an answer says of its first token; None where it says nothing.

    `logprobs` comes in two forms: OpenAI's of completions, and its later one of chats, which llama-server has here
    too, with ids.
    """
    try:
        log_probs = _answers_to_the_prompt(answer["choices"])[0]["logprobs"]
        if log_probs.get("content"):
            first = log_probs["content"][0]
            found = {one.get("id", one["token"]): _log_prob(one["logprob"]) for one in first["top_logprobs"]}
            # Here the token that was drawn stands beside the most probable ones, not among them.
            return NextToken.of(found, drawn="") if found else None
        named = {_key(token): _log_prob(log_prob) for token, log_prob in log_probs["top_logprobs"][0].items()}
        drawn = _key(log_probs["tokens"][0])
        return NextToken.of({drawn: _log_prob(log_probs["token_logprobs"][0]), **named}, drawn)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None


def _mismatch(answer: Any, prompt_tokens: int) -> str | None:
    """Why an answer is none to the prompt that was sent; None where nothing speaks against it."""
    try:
        choices = answer["choices"]
        ours = _answers_to_the_prompt(choices)
        if choices and len(ours) != 1:
            indices = [choice.get("index") for choice in choices]
            return f"one prompt was sent, with the index 0, and the answers have the indices {indices}"
        counted = (answer.get("usage") or {}).get("prompt_tokens")
        if counted and counted != prompt_tokens:
            return (
                f"it counts {counted} tokens in a prompt of {prompt_tokens}. A server must take token ids as they "
                "are, and neither cut them nor add to them"
            )
        log_probs = ours[0]["logprobs"]
        tokens = len(log_probs.get("content") or log_probs["tokens"])
        if tokens > 1:
            return f"one token was asked for, and it has the log-probabilities of {tokens}, the prompt's perhaps"
    except (KeyError, IndexError, TypeError, AttributeError):
        pass
    return None


def _answers_to_the_prompt(choices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those whose index is that of the one prompt of a request."""
    return [choice for choice in choices if choice.get("index") in (0, None)]


def _log_prob(value: float | None) -> float:
    """Null is the log-probability of what is impossible, since JSON has no minus infinity."""
    return -math.inf if value is None else float(value)


def _key(token: str) -> int | str:
    """The id in vLLM's `token_id:42`, or the text."""
    token_id = _TOKEN_ID.fullmatch(token)
    return token if token_id is None else int(token_id[1])


def _asked_for(headers: Mapping[str, str], by_default: float) -> float:
    """The seconds that the server wants to be left alone, by its `Retry-After`: a number, or a date."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return by_default
    return min(max(seconds, 0.0), _LONGEST_ASKED_FOR) if math.isfinite(seconds) else by_default
