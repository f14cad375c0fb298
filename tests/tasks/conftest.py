"""A real HTTP server on loopback, scripted by the test, and settings that let it be reached."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from worker.tasks import http


@dataclass
class Seen:
    """One request, as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Site:
    """The server, as a test scripts and reads it."""

    url: str
    seen: list[Seen] = field(default_factory=list)
    plans: dict[str, Callable[[Any], object]] = field(default_factory=dict)
    #: Set when the test is over: what a handler may wait for.
    over: threading.Event = field(default_factory=threading.Event)

    def answers(
        self, path: str, status: int = 200, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> str:
        """Answer `path` so from now on; returns its URL."""

        def plan(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in (headers or {}).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        return self.does(path, plan)

    def does(self, path: str, plan: Callable[[Any], object]) -> str:
        """Answer `path` by `plan(handler)` from now on; returns its URL."""
        self.plans[path] = plan
        return self.url + path


@pytest.fixture
def site() -> Iterator[Site]:
    """A server that answers 404 until it is told otherwise."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        site: ClassVar[Site]

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # the task hung up, as some tests ask it to
                self.close_connection = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.site.seen.append(Seen(self.command, self.path, headers, body))
            plan = self.site.plans.get(self.path)
            if plan is None:
                self.send_error(404)
            else:
                plan(self)

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Handler.site
    Handler.site.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`configure(http_allow_private="true")` sets WORKER_HTTP_ALLOW_PRIVATE for the task."""
    clear_caches()

    def change(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"WORKER_{name.upper()}", value)
        clear_caches()

    yield change
    clear_caches()


def clear_caches() -> None:
    """Let the task read its settings anew; closes its connections."""
    if http._transport.cache_info().currsize:
        http._transport(os.getpid()).close()
    http._transport.cache_clear()
    http._settings.cache_clear()


@pytest.fixture
def reachable(configure: Callable[..., None]) -> Callable[..., None]:
    """`configure`, with loopback allowed."""
    configure(http_allow_private="true")
    return configure
