"""A Kubernetes API server, as far as the keeper speaks to one: HTTPS, a token, a few pods."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from worker.keeper.cluster import COST

_PODS = "/api/v1/namespaces/jobs/pods"


class ApiServer:
    """The server as a test scripts and reads it.

    Attributes:
        costs: each pod's deletion cost; `None` where it has no annotations.
        patched: every pod that was changed, in turn.
        token: the one that is taken.
        page: pods in one answer.
        refuses: the status of every answer, if not what is right.
        refused: pods that may not be changed.
    """

    def __init__(self, folder: Path) -> None:
        self.costs: dict[str, str | None] = {}
        self.ending: set[str] = set()
        self.patched: list[str] = []
        self.connections = 0
        self.token = "first"
        self.page = 200
        self.refuses = 0
        self.refused: set[str] = set()
        self.account = folder / "account"
        self.account.mkdir()
        self._pem = folder / "server.pem"
        _make_certificate(self._pem)
        (self.account / "namespace").write_text("jobs")
        (self.account / "ca.crt").write_bytes(self._pem.read_bytes())
        self.give_token()
        self.port = 0

    def give_token(self) -> None:
        """Give the service account the token that is taken."""
        (self.account / "token").write_text(self.token + "\n")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve at the port of before, if there is one."""
        server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = server.server_port
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._pem)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, Any]:
        """Status and answer of one request."""
        url = urlsplit(target)
        if self.refuses:
            return self.refuses, {}
        if headers["Authorization"] != f"Bearer {self.token}":
            return 401, {}
        if method == "GET" and url.path == _PODS:
            assert headers["Accept"].startswith("application/json;as=PartialObjectMetadataList;")
            query = parse_qs(url.query)
            start = int(query.get("continue", ["0"])[0])
            return 200, self._list(start)
        pod = url.path.removeprefix(_PODS + "/")
        if method != "PATCH" or pod not in self.costs:
            return 404, {}
        if pod in self.refused:
            return 409, {}
        assert headers["Content-Type"] == "application/merge-patch+json"
        self.costs[pod] = json.loads(body)["metadata"]["annotations"][COST]
        self.patched.append(pod)
        return 200, self._pod(pod)

    def _list(self, start: int) -> dict[str, Any]:
        names = sorted(self.costs)
        more = str(start + self.page) if start + self.page < len(names) else ""
        items = [self._pod(name) for name in names[start : start + self.page]]
        return {"metadata": {"continue": more} if more else {}, "items": items}

    def _pod(self, name: str) -> dict[str, Any]:
        cost = self.costs[name]
        metadata: dict[str, Any] = {"name": name}
        if cost is not None:
            metadata["annotations"] = {"other": "kept", COST: cost}
        if name in self.ending:
            metadata["deletionTimestamp"] = "2030-01-01T00:00:00Z"
        return {"metadata": metadata}


def _handler(api: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            api.connections += 1
            super().setup()

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = api.answer(self.command, self.path, self.headers, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PATCH = do

        def handle(self) -> None:
            with suppress(OSError):  # the client hung up, or did not like the certificate
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _make_certificate(path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=kubernetes"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"]
    path.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
