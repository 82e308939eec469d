"""Why a request is refused, with its HTTP status, in the shape of OpenAI's errors."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: the reason and the cure.
        kind: a word for programs, such as `"invalid_request_error"`.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, kind: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.kind, self.headers = status, message, kind, headers or {}

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": None}}


def invalid(message: str) -> RequestError:
    """What is asked for cannot be answered, however often it is sent."""
    return RequestError(400, message, "invalid_request_error")


def not_found(message: str) -> RequestError:
    """There is no such model or path."""
    return RequestError(404, message, "not_found_error")


def unauthorized() -> RequestError:
    """The key is missing or wrong; which of the two is not told."""
    return RequestError(
        401,
        "The API key is missing or wrong. Send it as the header `Authorization: Bearer KEY`.",
        "authentication_error",
        {"WWW-Authenticate": "Bearer"},
    )


def too_large(limit: int) -> RequestError:
    """The body has more bytes than the server reads."""
    return RequestError(
        413, f"The body of a request may have {limit:,} bytes. Send fewer rows at a time.", "request_too_large"
    )


def busy(waiting: int) -> RequestError:
    """More prompts wait than the server lets wait."""
    return RequestError(
        429,
        f"{waiting:,} prompts wait already, which is as many as may. Send the request again a little later.",
        "rate_limit_error",
        {"Retry-After": "1"},
    )


def closing() -> RequestError:
    """The server is being stopped, or its model has failed."""
    return RequestError(
        503, "The server is being stopped. Send the request to another.", "service_unavailable", {"Retry-After": "5"}
    )


def gone() -> RequestError:
    """The client has closed the connection, and nobody reads the answer."""
    return RequestError(499, "The client has closed the connection.", "client_closed_request")


def out_of_time(seconds: float) -> RequestError:
    """The answer took longer than a request may."""
    return RequestError(
        504,
        f"The answer took longer than {seconds:g} seconds. Send fewer prompts at a time, or the request again later.",
        "timeout_error",
    )
