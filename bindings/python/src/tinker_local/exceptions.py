"""The exceptions of the official SDK, by name and attributes.

What an operation runs into is raised by its future's `result()` as `RequestFailedError`, whose `category` says who can do something about it.
What a direct question runs into (a listing, a deletion, opening a sampler) is raised as the `APIStatusError` that the HTTP API would answer with.
"""

from __future__ import annotations

import itertools
from enum import Enum
from typing import Any


class RequestErrorCategory(str, Enum):
    """Who can do something about a failure."""

    Unknown = "unknown"
    Server = "server"
    User = "user"

    def __str__(self) -> str:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


class TinkerError(Exception):
    """The base of all exceptions of this package."""


class ForkedError(TinkerError, RuntimeError):
    """The process is a child of fork(), in which the parent's engine cannot be used. Not in the official SDK, which holds no engine."""

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message
            or "this process was forked from one that uses tinker_local, and cannot use it: "
            'start processes with multiprocessing.get_context("spawn"), or before the first call'
        )


class APIError(TinkerError):
    """An answer that is an error. `request` is None here: there is no HTTP request behind it."""

    def __init__(self, message: str, request: Any = None, *, body: object | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request = request
        self.body = body

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.args, dict(self.__dict__))


class APIResponseValidationError(APIError):
    """An answer that does not fit its schema. Never raised here."""

    def __init__(self, response: Any = None, body: object | None = None, message: str | None = None) -> None:
        super().__init__(message or "the answer does not fit its schema", body=body)
        self.response = response
        self.status_code = getattr(response, "status_code", 0)


class APIStatusError(APIError):
    """A request that was refused. `status_code` is what the HTTP API answers in its place."""

    status_code: int = 500
    status: int = 0  # the tinker_status of tinker.h, 0 if there is none

    def __init__(self, message: str, response: Any = None, body: object | None = None) -> None:
        super().__init__(message, body=body)
        self.response = response
        self.status_code = getattr(response, "status_code", type(self).status_code)


class APIConnectionError(APIError):
    """No connection to a server. Never raised here."""

    def __init__(self, request: Any = None, message: str = "Connection error.") -> None:
        super().__init__(message, request)


class APITimeoutError(APIConnectionError):
    """No answer in time. Never raised here: a wait that ends first raises TimeoutError."""

    def __init__(self, request: Any = None) -> None:
        super().__init__(request, "Request timed out.")


class BadRequestError(APIStatusError):
    """An argument is wrong."""

    status_code = 400


class AuthenticationError(APIStatusError):
    """Who asks is not known. Never raised here."""

    status_code = 401


class PermissionDeniedError(APIStatusError):
    """Who asks may not. Never raised here."""

    status_code = 403


class NotFoundError(APIStatusError):
    """There is no such model, run, checkpoint or file."""

    status_code = 404


class ConflictError(APIStatusError):
    """It does not fit what has happened meanwhile."""

    status_code = 409


class UnprocessableEntityError(APIStatusError):
    """Understood, but this build or device does not do it."""

    status_code = 422


class RateLimitError(APIStatusError):
    """A limit is reached; try again later."""

    status_code = 429


class InternalServerError(APIStatusError):
    """The engine, its device or its disk failed."""

    status_code = 500


class SidecarError(TinkerError):
    """The official SDK's sampling subprocess, which does not exist here. Never raised."""


class SidecarStartupError(SidecarError):
    """Never raised here."""


class SidecarDiedError(SidecarError):
    """Never raised here."""


class SidecarIPCError(SidecarError):
    """Never raised here."""


class RequestFailedError(TinkerError):
    """An operation failed."""

    def __init__(self, message: str, request_id: str, category: RequestErrorCategory) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.category = category
        self.status = 0  # the tinker_status of tinker.h, 0 if there is none

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.args, dict(self.__dict__))


def _restore(kind: type[TinkerError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> TinkerError:
    """Makes a pickled exception again without its constructor, whose parameters differ from class to class."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(attributes)
    return error


_USER, _SERVER = RequestErrorCategory.User, RequestErrorCategory.Server

# tinker_status to its category (as Code.Category of engine/api) and to the HTTP API's answer.
_STATUSES: dict[int, tuple[RequestErrorCategory, type[APIStatusError]]] = {
    1: (_USER, BadRequestError),  # TINKER_ERR_BAD_REQUEST
    2: (_USER, NotFoundError),  # TINKER_ERR_NOT_FOUND
    3: (_USER, UnprocessableEntityError),  # TINKER_ERR_UNSUPPORTED
    4: (_USER, InternalServerError),  # TINKER_ERR_OUT_OF_MEMORY
    5: (_USER, ConflictError),  # TINKER_ERR_STALE
    6: (_USER, ConflictError),  # TINKER_ERR_CANCELLED
    7: (_SERVER, InternalServerError),  # TINKER_ERR_CLOSED
    8: (_SERVER, RateLimitError),  # TINKER_ERR_BUSY
    9: (_SERVER, InternalServerError),  # TINKER_ERR_DEVICE_LOST
    10: (_USER, InternalServerError),  # TINKER_ERR_NO_SPACE
    11: (_SERVER, InternalServerError),  # TINKER_ERR_DATA_LOSS
    12: (_SERVER, InternalServerError),  # TINKER_ERR_INTERNAL
    13: (_SERVER, InternalServerError),  # TINKER_ERR_HANDLE
}
_FORKED = 14  # TINKER_ERR_FORKED

_requests = itertools.count(1)


def failure(status: int, message: str) -> TinkerError:
    """What a future raises."""
    if status == _FORKED:
        return ForkedError()
    category = _STATUSES[status][0] if status in _STATUSES else RequestErrorCategory.Unknown
    error = RequestFailedError(message, f"request-{next(_requests)}", category)
    error.status = status
    return error


def refusal(status: int, message: str) -> TinkerError:
    """What a direct call raises."""
    if status == _FORKED:
        return ForkedError()
    kind = _STATUSES[status][1] if status in _STATUSES else InternalServerError
    error = kind(message, body={"detail": message})
    error.status = status
    return error


def as_refusal(error: RequestFailedError) -> TinkerError:
    """A failed operation as the refusal of a direct call."""
    return refusal(error.status, error.message) if error.status else error
