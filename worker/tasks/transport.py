"""The connections of `http.request`: pinned to judged addresses, bounded by one deadline."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

from worker.tasks.addresses import Lookup, addresses_of

#: Bytes written between two looks at the clock.
_PIECE = 1 << 14
#: Seconds for a lookup or a connection outside `deadline`.
_PATIENCE = 30.0

_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Bound everything that this thread sends and receives within to `seconds` in all.

    httpx's timeouts bound each single read: a server that sends a byte now and then keeps
    a job for ever.
    """
    token = _DEADLINE.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


class PinnedTransport(httpx.HTTPTransport):
    """A pool of HTTP/1.1 connections, each to an address that was judged just before.

    Used without `httpx.Client`, which would share cookies between jobs, follow redirects by its
    own rules and read proxies from the environment. Safe for threads; not across a fork.

    Args:
        backend: makes the connections.
        context: default a TLS context that verifies certificates and host names.
    """

    def __init__(self, backend: PinnedBackend, context: ssl.SSLContext | None = None) -> None:
        context = context or httpx.create_ssl_context(trust_env=False)
        super().__init__(verify=context, trust_env=False)
        # httpx 0.28 takes no network backend, so its pool is replaced by its own kind with ours.
        # No bound on connections: a worker has as many as it runs jobs.
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=100,
            keepalive_expiry=15.0,
            network_backend=backend,
        )


class PinnedBackend(httpcore.NetworkBackend):
    """Resolves a host once, judges every address, and connects to exactly those.

    TLS is unaware of it: the pool still asks for, and verifies, the name.

    Args:
        allow_private: judge no address.
        lookup: default this machine's resolver.
        inner: connects to an address; default a TCP socket.
    """

    def __init__(
        self,
        *,
        allow_private: bool,
        lookup: Lookup | None = None,
        inner: httpcore.NetworkBackend | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._lookup = lookup
        self._inner = inner or httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address of `host` that answers.

        Raises:
            AddressRefused: see `addresses_of`.
            httpcore.ConnectError: no such name, or nobody answers.
            httpcore.ConnectTimeout: not in time.
        """
        addresses = self._addresses(host, port, timeout)
        for position, address in enumerate(addresses, start=1):
            # A dead address must leave time for the ones behind it.
            share = _left(timeout, httpcore.ConnectTimeout) / (len(addresses) - position + 1)
            try:
                stream = self._inner.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(addresses):
                    raise
            else:
                return _Bounded(stream)
        raise AssertionError("addresses_of gives one address or more")

    def _addresses(self, host: str, port: int, timeout: float | None) -> list[str]:
        left = _left(timeout, httpcore.ConnectTimeout)
        try:
            return addresses_of(
                host, port, allow_private=self._allow_private, timeout=left, lookup=self._lookup
            )
        except TimeoutError as exc:
            raise httpcore.ConnectTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.ConnectError(str(exc)) from exc


class _Bounded(httpcore.NetworkStream):
    """A stream whose every step ends by the deadline of the thread that takes it."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            piece = buffer[start : start + _PIECE]
            self._stream.write(piece, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Bounded(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(timeout: float | None, error: type[httpcore.TimeoutException]) -> float:
    """Seconds that a step may take; raises `error` when none are left."""
    bound = _PATIENCE if timeout is None else timeout
    if (end := _DEADLINE.get()) is None:
        return bound
    if (left := end - time.monotonic()) <= 0:
        raise error("the time is up")
    return left if timeout is None else min(bound, left)
