"""Futures: the handles on which results appear.

    Operation       what training methods return: waits inside the library, in the thread that asks
    WatchedFuture   what sampling methods return: a concurrent.futures.Future, completed by one watcher thread

Both can be waited for with `.result(timeout)`, `await`, and `.result_async(timeout)`. An operation goes on whether or not anybody waits for it;
a wait that is cancelled or times out leaves it alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from ctypes import byref, c_void_p
from typing import Any, Generic, TypeVar

from . import _structs as s
from ._library import Handle, last_error, lib
from ._watcher import watch
from .exceptions import APIStatusError, RequestFailedError, failure

T = TypeVar("T")
U = TypeVar("U")

_BAD_REQUEST = 1  # TINKER_ERR_BAD_REQUEST

# How long a wait stays inside the library: Python sees Ctrl-C between two of these.
SLICE_MS = 100


class APIFuture(ABC, Generic[T]):
    """A result that is still to come."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> T:
        """Waits for the result, or raises what went wrong. timeout in seconds bounds the wait (TimeoutError), not the operation."""

    @abstractmethod
    async def result_async(self, timeout: float | None = None) -> T:
        """The same without blocking the event loop."""

    @abstractmethod
    def done(self) -> bool:
        """Whether it has ended, without waiting."""

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()


class AwaitableConcurrentFuture(APIFuture[T]):
    """An APIFuture of a concurrent.futures.Future."""

    def __init__(self, future: concurrent.futures.Future[T]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> T:
        """As APIFuture.result."""
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        """As APIFuture.result_async."""
        await _settled(self._future.add_done_callback, self._future.done, timeout)
        return self._future.result(0)

    def done(self) -> bool:
        """As APIFuture.done."""
        return self._future.done()

    def future(self) -> concurrent.futures.Future[T]:
        """The future inside."""
        return self._future


class Operation(APIFuture[T]):
    """The future of an operation that was submitted to the library."""

    def __init__(self, handle: Handle | None, convert: Callable[[Handle], T]) -> None:
        """convert makes the result of the ended future; it runs once, in the thread that asks first, and the handle is freed after it."""
        self._handle = handle
        self._convert = convert
        self._lock = threading.Lock()
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._watched: WatchedFuture[T] | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Operation[T]:
        """An operation that was refused when it was submitted. Its result raises that."""
        op: Operation[T] = cls(None, lambda handle: None)  # type: ignore[arg-type, return-value]
        op._error, op._done = error, True
        return op

    def result(self, timeout: float | None = None) -> T:
        """As APIFuture.result. Ctrl-C ends the wait within a tenth of a second."""
        if not self._done:
            self._wait(timeout)
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    async def result_async(self, timeout: float | None = None) -> T:
        """As APIFuture.result_async."""
        await _settled(lambda done: watch(self, done), self.done, timeout)
        return self.result(0)

    def done(self) -> bool:
        """As APIFuture.done."""
        return self._done or self._ask(0)

    def cancel(self) -> bool:
        """Drops the operation if it is still queued; sampling also stops at its next token. False when it had ended already."""
        library = lib()
        with self._lock:
            if self._done or self._handle is None:
                return False
            library.tinker_future_cancel(self._handle.value)
            return True

    def future(self) -> WatchedFuture[T]:
        """The same result as a concurrent.futures.Future."""
        lib()
        with self._lock:
            if self._watched is None:
                self._watched = WatchedFuture(self)
            return self._watched

    def _wait(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            ms = SLICE_MS
            if end is not None:
                ms = min(ms, max(0, int((end - time.monotonic()) * 1000 + 0.999)))
            if self._ask(ms):
                return
            if ms == 0 or (end is not None and time.monotonic() >= end):
                raise TimeoutError(f"the operation has not ended within {timeout} s; it goes on")

    def _ask(self, ms: int) -> bool:
        """Waits up to ms inside the library; whether it has ended."""
        library = lib()  # before any lock, here and elsewhere: in a child of fork() another thread may have held it, and nobody gives it back
        handle = self._handle
        value = None if handle is None else handle.value
        if value is None:
            with self._lock:  # another thread is converting the result, or has
                return self._done
        status = library.tinker_future_wait(value, ms)
        if status == s.PENDING:
            return False
        message = last_error() if status else ""
        with self._lock:
            if not self._done:
                self._settle(status, message)
        return True

    def _settle(self, status: int, message: str) -> None:
        """Called once, under the lock. Ctrl-C in the middle leaves it unsettled, for the next who asks."""
        assert self._handle is not None
        try:
            if status == s.OK:
                self._value = self._convert(self._handle)
            else:
                self._error = failure(status, message)
        except Exception as e:
            self._error = e
        self._done = True
        del self._convert
        self._handle.free()


def submit(call: Callable[[Any], int], convert: Callable[[Handle], T]) -> Operation[T]:
    """Submits an operation. One that is refused, or whose arguments cannot be handed over, is a future that has failed."""
    out = c_void_p()
    try:
        status = call(byref(out))
    except RequestFailedError as e:
        return Operation.failed(e)
    except APIStatusError as e:
        return Operation.failed(failure(e.status, e.message))
    except (ctypes.ArgumentError, AttributeError, LookupError, OverflowError, TypeError, ValueError) as e:
        error = failure(_BAD_REQUEST, f"{type(e).__name__}: {e}" if isinstance(e, (AttributeError, LookupError)) else str(e))
        error.__cause__ = e
        return Operation.failed(error)
    if status:
        return Operation.failed(failure(status, last_error()))
    return Operation(Handle(out.value, "tinker_future_free"), convert)


class AwaitableFuture(concurrent.futures.Future[T], APIFuture[T]):
    """A concurrent.futures.Future, for as_completed, callbacks and the like, that can be awaited as well."""

    def result(self, timeout: float | None = None) -> T:
        """As APIFuture.result. Ctrl-C ends the wait within a tenth of a second."""
        return self._sliced(super().result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What result would raise; None if nothing."""
        return self._sliced(super().exception, timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        """As APIFuture.result_async."""
        await _settled(self.add_done_callback, self.done, timeout)
        return self.result(0)

    def future(self) -> AwaitableFuture[T]:
        """Itself, for programs that treat it like what training methods return."""
        return self

    def settle(self, make: Callable[[], T]) -> None:
        """Completes it with what make returns or raises."""
        try:
            value = make()
        except BaseException as e:
            self.set_exception(e)
        else:
            self.set_result(value)

    def _sliced(self, wait: Callable[[float], U], timeout: float | None) -> U:
        """Waits in slices: a signal that another thread gets does not wake this one up."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            lib()  # in a child of fork() nothing would ever complete it
            left = SLICE_MS / 1000 if end is None else min(SLICE_MS / 1000, max(0.0, end - time.monotonic()))
            try:
                return wait(left)
            except concurrent.futures.TimeoutError:
                if self.done():
                    return wait(0)
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"it has not ended within {timeout} s; it goes on") from None


class WatchedFuture(AwaitableFuture[T]):
    """The future of an operation that the watcher completes."""

    def __init__(self, operation: Operation[T]) -> None:
        super().__init__()
        self._operation = operation
        self.set_running_or_notify_cancel()
        watch(operation, lambda op: self.settle(lambda: op.result(0)))

    def cancel(self) -> bool:
        """As Operation.cancel. The future then fails with RequestFailedError, unless its result came first."""
        return self._operation.cancel()


async def _settled(on_done: Callable[[Callable[[Any], None]], Any], done: Callable[[], bool], timeout: float | None) -> None:
    """Waits in an event loop until something is done. Cancelling the wait leaves that something alone."""
    if done():
        return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def settle() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def wake(_: object = None) -> None:
        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            pass  # the loop was closed: nobody waits any more

    on_done(wake)
    try:
        await asyncio.wait_for(waiter, timeout)
    except asyncio.TimeoutError:
        raise TimeoutError(f"it has not ended within {timeout} s; it goes on") from None
