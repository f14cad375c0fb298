"""`http.request`: the built-in task that delivers webhooks and calls HTTP services."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import quote

import httpx
from celery import Task, shared_task

from worker.jobs.retry import Backoff
from worker.settings import Settings
from worker.tasks.exchange import (
    KEY_HEADER,
    Answer,
    HTTPRefused,
    Outgoing,
    exchange,
    outgoing,
    shown,
    signed,
)
from worker.tasks.transport import PinnedBackend, PinnedTransport

MIN_TIMEOUT, MAX_TIMEOUT = 0.1, 300.0
MAX_RETRIES = 1000
#: Seconds: the longest wait of our own, and the longest that a server may ask for.
MAX_BACKOFF, MAX_RETRY_AFTER = 300.0, 3600.0
#: Besides 5xx. 425: the server would not risk a replay yet.
_RETRIED = frozenset({408, 425, 429})


class HTTPUnavailable(Exception):
    """No answer, or one that says "later", until the retries were used up."""


@dataclass(frozen=True, slots=True)
class _Later:
    """An attempt to be repeated: what happened, and the seconds that the server asked for."""

    what: str
    after: float | None = None


@shared_task(name="http.request", bind=True, max_retries=8, throws=(HTTPRefused, HTTPUnavailable))
def http_request(
    self: Task[..., Any],
    method: str,
    url: str,
    *,
    headers: dict[str, str] | None = None,
    body: Any = None,
    timeout: float = 30.0,
    retries: int = 8,
    backoff: float = 1.0,
) -> dict[str, Any]:
    """Send one HTTP request, again and again until it is answered for good.

    Delivered at least once: every attempt carries the job's id as `Idempotency-Key`, so that
    the receiver can tell a repetition. The body is signed, see `worker.tasks.signing`, when
    WORKER_HTTP_SIGNING_SECRET is set.

    Args:
        method: one of `worker.tasks.exchange.METHODS`.
        url: http or https.
        headers: printable ASCII; not those that frame the message.
        body: a text is sent as it is, anything else but `None` as JSON.
        timeout: seconds for one attempt in all, redirects and body included; 0.1 to 300.
        retries: how often to try again after a connection error, a timeout, 408, 425, 429
            or 5xx; 0 to 1000.
        backoff: seconds, the bound of the first wait; it doubles up to 300, drawn with full
            jitter. A server's `Retry-After` is waited for at the least, up to an hour.

    Returns:
        `status`, `headers` (a few), `body` (text), `truncated`, `elapsed_ms` and `url` (the
        last one, without user, password and query).

    Raises:
        HTTPRefused: it will not succeed by being repeated: other 4xx, an address that may not
            be reached, arguments that cannot be.
        HTTPUnavailable: the retries are used up.
    """
    policy = _checked_policy(timeout, retries, backoff)
    request = _prepared(self.request.id, method, url, headers, body)
    outcome = _attempt(request, timeout)
    if isinstance(outcome, Answer):
        return outcome.as_json()
    tried = self.request.retries
    end = f"; gave up after {tried + 1} attempts." if tried >= retries else "."
    raise self.retry(
        exc=HTTPUnavailable(f"{request.method} {shown(request.url)} {outcome.what}{end}"),
        countdown=max(outcome.after or 0.0, policy.wait(tried)),
        max_retries=retries,
    )


def retry_after(value: str | None, now: datetime) -> float | None:
    """The seconds that a `Retry-After` header asks for, 0 to 3600; `None` when it says nothing.

    Args:
        value: seconds, or an HTTP date (RFC 9110, 10.2.3).
        now: the time that a date is compared with, with time zone.
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return min(float(text), MAX_RETRY_AFTER)
    until = _http_date(text)
    return None if until is None else min(max((until - now).total_seconds(), 0), MAX_RETRY_AFTER)


def _attempt(request: Outgoing, timeout: float) -> Answer | _Later:
    """One attempt's answer, when it is a success.

    Raises:
        HTTPRefused: it will not succeed by being repeated.
    """
    transport, max_bytes = _transport(os.getpid()), _settings().http_response_max_bytes
    try:
        answer = exchange(transport, request, timeout=timeout, max_bytes=max_bytes)
    except httpx.TimeoutException:
        return _Later(f"was not answered within {timeout:g} s")
    except httpx.ConnectError as exc:
        return _Later(f"could not be connected to ({exc})")
    except httpx.TransportError:
        return _Later("lost its connection")
    if answer.status >= 500 or answer.status in _RETRIED:
        # By the server's own clock where it tells it: ours may be off by more than the wait.
        now = _http_date(answer.headers.get("date", "")) or datetime.now(UTC)
        after = retry_after(answer.headers.get("retry-after"), now)
        return _Later(f"was answered {answer.status}", after)
    if answer.status >= 400:
        raise HTTPRefused(f"{request.method} {shown(answer.url)} was answered {answer.status}.")
    return answer


def _prepared(
    job_id: str | None, method: str, url: str, headers: Mapping[str, str] | None, body: Any
) -> Outgoing:
    content, content_type = _encoded(body)
    request = outgoing(method, url, headers, content)
    if content_type is not None:
        request.headers.setdefault("content-type", content_type)
    if job_id is not None:
        # A job id may hold any Unicode, a header may not.
        request.headers.setdefault(KEY_HEADER.lower(), quote(job_id, safe="/:@+=~ "))
    secret = _settings().http_signing_secret
    if secret is None or not secret.get_secret_value():
        return request
    return signed(request, secret.get_secret_value(), time.time())


def _encoded(body: Any) -> tuple[bytes | None, str | None]:
    if body is None:
        return None, None
    try:
        if isinstance(body, str):
            return body.encode(), "text/plain; charset=utf-8"
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(), "application/json"
    except (TypeError, ValueError):
        raise HTTPRefused("The body must be a text or JSON, in valid Unicode.") from None


def _checked_policy(timeout: Any, retries: Any, backoff: Any) -> Backoff:
    if not _is_number(timeout) or not MIN_TIMEOUT <= timeout <= MAX_TIMEOUT:
        raise HTTPRefused(f"timeout must be seconds from 0.1 to 300, not {timeout!r}.")
    if type(retries) is not int or not 0 <= retries <= MAX_RETRIES:
        raise HTTPRefused(f"retries must be a whole number from 0 to 1000, not {retries!r}.")
    if not _is_number(backoff) or not 0 < backoff <= MAX_BACKOFF:
        raise HTTPRefused(f"backoff must be seconds above 0, to 300, not {backoff!r}.")
    return Backoff(base=backoff, cap=MAX_BACKOFF)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@cache
def _settings() -> Settings:
    # Not on import: a producer imports this module too, and may have no settings at all. The
    # stores' addresses are not used here, and an app may have them from elsewhere.
    unused = {
        "database_url": lambda: "postgresql://127.0.0.1/unused",
        "redis_url": lambda: "redis://127.0.0.1",
    }
    return Settings.load(otherwise=unused)


@cache
def _transport(pid: int) -> PinnedTransport:
    # One per process, hence the key: a forked child must not use its parent's connections.
    return PinnedTransport(PinnedBackend(allow_private=_settings().http_allow_private))
