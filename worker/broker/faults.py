"""What redis-py raises, as `worker.errors`: is Redis away, or does it refuse?"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
from redis.sentinel import MasterNotFoundError

from worker.errors import BrokerRefused, BrokerUnavailable

#: What Redis answers to any command while it is full, starting, failing over or unable to save.
_UNABLE: Final = re.compile(
    r"\b(BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b"
)

#: What the system says of a connection that cannot be made or has ended, and what that means.
_CAUSES: Final[tuple[tuple[type[OSError], str], ...]] = (
    (ConnectionRefusedError, "the connection is refused"),
    (ConnectionResetError, "the connection was reset"),
    (socket.gaierror, "the name of its host is not known"),
    (TimeoutError, "it has not answered in time"),
)


def is_unable(error: redis.exceptions.ResponseError) -> bool:
    """Whether Redis refuses because of its own state, whatever it was asked."""
    # redis-py takes the code off the errors that it has a class for.
    known = (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError)
    return isinstance(error, known) or bool(_UNABLE.search(_first_line(error)))


@contextmanager
def translated() -> Iterator[None]:
    """Turn what redis-py raises into `worker.errors`."""
    try:
        yield
    except redis.exceptions.AuthenticationError:
        raise BrokerUnavailable("Redis refuses the password; check REDIS_URL.") from None
    except redis.exceptions.InvalidResponse:
        raise BrokerUnavailable(
            "Redis is not available: what answers there is no Redis; check REDIS_URL."
        ) from None
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as exc:
        raise BrokerUnavailable(f"Redis is not available: {_why(exc)}.") from exc
    except redis.exceptions.ResponseError as exc:
        reason = f"Redis refuses: {_first_line(exc)}"
        raise BrokerUnavailable(reason) if is_unable(exc) else BrokerRefused(reason) from exc


def _first_line(exc: BaseException) -> str:
    return next(iter(str(exc).splitlines()), type(exc).__name__)


def _why(exc: BaseException) -> str:
    """The reason in a few words, without the addresses that redis-py's own words name."""
    if isinstance(exc, MasterNotFoundError):
        return (
            "no Sentinel answers and names a living master; check the Sentinels and master_name in"
            " REDIS_URL"
        )
    cause = exc.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is refused ({cause.verify_message.rstrip('.')}); check ssl_ca_certs"
            " in REDIS_URL"
        )
    if isinstance(cause, ssl.SSLError):
        return f"TLS fails ({cause.reason or type(cause).__name__}); check REDIS_URL"
    if isinstance(cause, (FileNotFoundError, PermissionError)):
        return "a file that REDIS_URL names for TLS cannot be read"
    for kind, words in _CAUSES:
        if isinstance(cause, kind):
            return f"{words}; check REDIS_URL, or start Redis"
    if "closed by server" in str(exc):  # before the first answer, and as it ends
        return "it closed the connection; check that REDIS_URL names a Redis"
    return type(exc).__name__
