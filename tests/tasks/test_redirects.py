"""Redirects of `http.request`: judged like the first URL, and given no credentials elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpcore
import pytest

from worker.tasks.exchange import (
    Answer,
    HTTPRefused,
    exchange,
    outgoing,
    signed,
)
from worker.tasks.transport import PinnedBackend, PinnedTransport

if TYPE_CHECKING:  # a conftest is not to be imported
    from tests.tasks.conftest import Site

NAMES = {"public.example": "8.8.8.8", "other.example": "9.9.9.9", "inside.example": "10.0.0.1"}
HEADERS = {"Authorization": "Bearer 1", "Cookie": "a=1", "X-Api-Key": "1", "Accept": "a/b"}


class Rerouted(httpcore.SyncBackend):
    """Brings connections to public addresses to the test's server instead."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []
        self._port = port

    def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(host)
        return super().connect_tcp("127.0.0.1", self._port, *args, **kwargs)


Send = Callable[..., Answer]


@pytest.fixture
def routes(site: Site) -> Rerouted:
    return Rerouted(int(site.url.rpartition(":")[2]))


@pytest.fixture
def send(routes: Rerouted) -> Iterator[Send]:
    """Sends by the names above, as a worker that may not reach private addresses."""

    def lookup(host: str, _port: int) -> list[str]:
        return [NAMES.get(host, host)]

    transport = PinnedTransport(PinnedBackend(allow_private=False, lookup=lookup, inner=routes))

    def send(url: str, method: str = "POST", content: bytes | None = b"body") -> Answer:
        request = signed(outgoing(method, url, HEADERS, content), "secret", 1)
        return exchange(transport, request, timeout=10, max_bytes=100)

    yield send
    transport.close()


def test_a_redirect_is_followed(site: Site, send: Send) -> None:
    site.answers("/", 307, {"Location": "/new?x=1"})
    site.answers("/new?x=1", body=b"here")
    answer = send("http://public.example/")
    assert (answer.status, answer.body) == (200, b"here")
    assert site.seen[1].headers == site.seen[0].headers
    assert site.seen[1].body == b"body"


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1/", "http://inside.example/", "http://[::ffff:169.254.169.254]/"],
)
def test_a_redirect_to_a_private_address_is_refused(
    site: Site, send: Send, routes: Rerouted, target: str
) -> None:
    site.answers("/", 307, {"Location": target})
    with pytest.raises(HTTPRefused, match="WORKER_HTTP_ALLOW_PRIVATE"):
        send("http://public.example/")
    assert routes.asked == ["8.8.8.8"]


@pytest.mark.parametrize("target", ["http://other.example/b", "http://public.example:81/b"])
def test_another_origin_gets_no_credentials(site: Site, send: Send, target: str) -> None:
    site.answers("/a", 307, {"Location": target})
    site.answers("/b")
    send("http://public.example/a")
    kept = set(site.seen[1].headers)
    assert kept == {"host", "accept", "accept-encoding", "user-agent", "content-length"}


def test_a_user_in_the_target_is_not_used(site: Site, send: Send) -> None:
    site.answers("/a", 307, {"Location": "http://ann:pw@public.example/b"})
    site.answers("/b")
    send("http://public.example/a")
    assert site.seen[1].headers["authorization"] == "Bearer 1"


@pytest.mark.parametrize(
    ("status", "method", "after"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (302, "PUT", "PUT"),
        (307, "POST", "POST"),
        (308, "PUT", "PUT"),
    ],
)
def test_the_method_after_a_redirect(
    site: Site, send: Send, status: int, method: str, after: str
) -> None:
    site.answers("/a", status, {"Location": "/b"})
    site.answers("/b")
    send("http://public.example/a", method, None if method == "HEAD" else b"body")
    assert site.seen[1].method == after
    kept = after == method and status != 303
    assert site.seen[1].body == (b"body" if kept else b"")
    assert ("x-ledger-signature" in site.seen[1].headers) is kept


def test_a_loop_ends(site: Site, send: Send) -> None:
    site.answers("/", 307, {"Location": "/"})
    with pytest.raises(HTTPRefused, match="more than 5 times"):
        send("http://public.example/")
    assert len(site.seen) == 6


@pytest.mark.parametrize("target", ["ftp://public.example/", "http://public.example:x/", "http://"])
def test_a_redirect_to_nowhere_is_refused(site: Site, send: Send, target: str) -> None:
    site.answers("/", 307, {"Location": target})
    with pytest.raises(HTTPRefused):
        send("http://public.example/")


def test_a_redirect_without_a_target_is_the_answer(site: Site, send: Send) -> None:
    site.answers("/", 302)
    assert send("http://public.example/").status == 302
