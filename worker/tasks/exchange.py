"""One HTTP exchange: a checked request, its redirects, a bounded answer."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import httpx

from worker.tasks import signing
from worker.tasks.addresses import AddressRefused
from worker.tasks.transport import deadline

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MAX_REDIRECTS = 5
USER_AGENT = "celery-ledger"
#: The header that lets a receiver tell a repeated delivery from a new one.
KEY_HEADER = "Idempotency-Key"

#: Response headers worth a row in the ledger.
_KEPT = ("content-type", "content-length", "retry-after", "etag", "location")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Headers that frame the message: ours to set, or a request could be smuggled.
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"}
)
#: All that another origin gets of the headers: anything else may be a credential.
_HARMLESS = frozenset(
    {"accept", "accept-encoding", "content-type", "user-agent", KEY_HEADER.lower()}
)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")


class HTTPRefused(Exception):
    """A request that will not succeed by being repeated; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A checked request. `url` holds neither user nor password; `headers` are in lower case."""

    method: str
    url: httpx.URL
    headers: dict[str, str]
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `body` is cut at the limit when `truncated`, and empty for an error."""

    status: int
    headers: httpx.Headers
    body: bytes
    truncated: bool
    elapsed_ms: int
    url: httpx.URL

    def as_json(self) -> dict[str, Any]:
        """The task's result."""
        return {
            "status": self.status,
            "headers": {name: self.headers[name] for name in _KEPT if name in self.headers},
            "body": _text(self.body, self.headers),
            "truncated": self.truncated,
            "elapsed_ms": self.elapsed_ms,
            "url": shown(self.url),
        }


def shown(url: httpx.URL) -> str:
    """`url` as it may be stored and logged: no user, password, query or fragment."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def outgoing(
    method: str, url: str, headers: Mapping[str, str] | None, content: bytes | None
) -> Outgoing:
    """A checked request; a user and password in `url` become an `Authorization` header.

    Raises:
        HTTPRefused: a method, URL or header that cannot be sent. Never quotes a header's value.
    """
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise HTTPRefused(f"The method must be one of {', '.join(METHODS)}, not {method!r}.")
    target = _checked_url(url)
    chosen = {"user-agent": USER_AGENT, "accept": "*/*", "accept-encoding": "identity"}
    if target.userinfo:
        credentials = base64.b64encode(unquote(target.userinfo.decode()).encode()).decode()
        chosen["authorization"] = f"Basic {credentials}"
    chosen |= _checked_headers(headers or {})
    return Outgoing(method.upper(), target.copy_with(userinfo=b""), chosen, content)


def signed(request: Outgoing, secret: str, now: float) -> Outgoing:
    """`request` with the signature of its body, over the Unix time `now`."""
    value = signing.sign(secret, request.content or b"", int(now))
    return replace(request, headers={**request.headers, signing.HEADER.lower(): value})


def exchange(
    transport: httpx.BaseTransport, request: Outgoing, *, timeout: float, max_bytes: int
) -> Answer:
    """Send `request`, follow at most `MAX_REDIRECTS`, all within `timeout` seconds.

    The body of an error is not read: it is nobody's to keep, and may take its time.

    Raises:
        HTTPRefused: an address that may not be reached, or a redirect that may not be followed.
        httpx.TransportError: no answer, or not a whole one in time.
    """
    started = time.monotonic()
    with deadline(timeout):
        for _ in range(MAX_REDIRECTS + 1):
            with _sent(transport, request) as response:
                following = _redirected(request, response)
                if following is None:
                    body, truncated = _bounded(response, max_bytes)
                    elapsed = round((time.monotonic() - started) * 1000)
                    return Answer(
                        response.status_code,
                        response.headers,
                        body,
                        truncated,
                        elapsed,
                        request.url,
                    )
            request = following
    raise HTTPRefused(f"{shown(request.url)} redirects more than {MAX_REDIRECTS} times.")


@contextmanager
def _sent(transport: httpx.BaseTransport, request: Outgoing) -> Iterator[httpx.Response]:
    message = httpx.Request(
        request.method, request.url, headers=request.headers, content=request.content
    )
    try:
        response = transport.handle_request(message)
    except AddressRefused as exc:
        raise HTTPRefused(str(exc)) from None
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol):
        # Without its text, which quotes what was sent.
        raise HTTPRefused(f"The request to {shown(request.url)} is not valid HTTP.") from None
    try:
        yield response
    finally:
        response.close()


def _bounded(response: httpx.Response, max_bytes: int) -> tuple[bytes, bool]:
    """At most `max_bytes` of the body, as they came, and whether there was more."""
    kept = bytearray()
    if response.status_code >= 400:
        return b"", False
    for chunk in response.iter_raw():
        kept += chunk[: max_bytes + 1 - len(kept)]
        if len(kept) > max_bytes:
            return bytes(kept[:max_bytes]), True
    return bytes(kept), False


def _redirected(request: Outgoing, response: httpx.Response) -> Outgoing | None:
    """The next request, or `None` when this response is the last. Source: RFC 9110, 15.4."""
    status, location = response.status_code, response.headers.get("location")
    if status not in _REDIRECTS or location is None:
        return None
    try:
        joined = request.url.join(location)
    except httpx.InvalidURL:
        raise HTTPRefused(f"{shown(request.url)} redirects to something that is no URL.") from None
    target = _checked_url(str(joined)).copy_with(userinfo=b"", fragment=None)
    if request.url.scheme == "https" and target.scheme == "http":
        raise HTTPRefused(f"{shown(request.url)} redirects from https to http.")
    following = replace(request, url=target)
    if status == 303 or (status in {301, 302} and request.method == "POST"):
        following = _without_body(following)
    if _origin(target) != _origin(request.url):
        headers = {k: v for k, v in following.headers.items() if k in _HARMLESS}
        following = replace(following, headers=headers)
    return following


def _without_body(request: Outgoing) -> Outgoing:
    # The signature was over the body; it would not fit what is sent now.
    gone = {"content-type", signing.HEADER.lower()}
    headers = {k: v for k, v in request.headers.items() if k not in gone}
    method = "HEAD" if request.method == "HEAD" else "GET"
    return replace(request, method=method, headers=headers, content=None)


def _checked_url(url: object) -> httpx.URL:
    if not isinstance(url, str):
        raise HTTPRefused(f"The URL must be a text, not {type(url).__name__}.")
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        # Without the text: what cannot be taken apart may hold a password anywhere.
        raise HTTPRefused("The URL cannot be read; expected http(s)://host/path.") from None
    if target.scheme not in {"http", "https"} or not target.host:
        raise HTTPRefused("The URL must have the form http(s)://host/path.")
    return target


def _checked_headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise HTTPRefused(f"headers must be an object, not {type(headers).__name__}.")
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise HTTPRefused(f"{name!r} is no name of an HTTP header.")
        if name.lower() in _OURS or name.lower() == signing.HEADER.lower():
            raise HTTPRefused(f"The header {name} is set by http.request itself; leave it out.")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise HTTPRefused(f"The value of the header {name} must be printable ASCII.")
        checked[name.lower()] = value.strip()
    return checked


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}[url.scheme]


def _text(body: bytes, headers: httpx.Headers) -> str:
    charset = re.search(r"charset=\"?([\w.:-]+)", headers.get("content-type", ""), re.IGNORECASE)
    try:
        return body.decode(charset[1] if charset else "utf-8", errors="replace")
    except (LookupError, ValueError):  # no such charset, or one that knows no "replace"
        return body.decode("utf-8", errors="replace")
