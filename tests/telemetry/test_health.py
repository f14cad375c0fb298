from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from worker.errors import InvalidSettings
from worker.telemetry import health
from worker.telemetry.health import CONNECTIONS, HealthServer

#: Seconds that an answer may take on a busy machine.
PATIENCE = 30.0


class Served:
    """A server on loopback whose probes say what the test wants."""

    def __init__(self) -> None:
        self.live: list[str] = []
        self.ready: list[str] = []
        self.server = HealthServer("127.0.0.1", 0, lambda: self.live, lambda: self.ready)
        self.server.start()

    def ask(self, path: str, method: str = "GET", **options: Any) -> tuple[int, dict[str, Any]]:
        """The status and the body of an answer."""
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        try:
            connection.request(method, path, **options)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else {}
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)

    def say(self, data: bytes) -> bytes:
        """Everything that comes back for these bytes, until the server hangs up."""
        with self.connect() as client:
            client.sendall(data)
            answer = b""
            while part := client.recv(4096):
                answer += part
            return answer


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.close()


def test_a_healthy_process_says_ok(served: Served) -> None:
    assert served.ask("/livez") == (200, {"status": "ok", "reasons": []})
    assert served.ask("/readyz?verbose=1") == (200, {"status": "ok", "reasons": []})


def test_each_probe_tells_its_own_reasons(served: Served) -> None:
    served.ready.append("Postgres does not answer.")
    assert served.ask("/livez")[0] == 200
    assert served.ask("/readyz") == (
        503,
        {"status": "unhealthy", "reasons": ["Postgres does not answer."]},
    )
    served.ready.clear()
    assert served.ask("/readyz")[0] == 200


def test_head_is_answered_without_a_body(served: Served) -> None:
    answer = served.say(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Content-Length: " in head
    assert body == b""


def test_what_is_not_asked_for_like_a_probe_is_refused(served: Served) -> None:
    assert served.ask("/")[0] == 404
    assert served.ask("/livez/../readyz")[0] == 404
    assert served.ask("/livez", "POST", body=b"x" * 30_000)[0] == 405
    assert served.ask("/nowhere", "DELETE")[0] == 404


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /livez\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
        (b"GET /livez HTTP/2.0\r\n\r\n", b"400"),
    ],
    ids=["a huge header", "a huge path", "no version", "TLS", "HTTP/2"],
)
def test_a_bad_request_is_answered_and_harms_nobody(
    served: Served, data: bytes, status: bytes
) -> None:
    assert served.say(data).startswith(b"HTTP/1.1 " + status)
    assert served.ask("/livez")[0] == 200


def test_an_answer_tells_no_version(served: Served) -> None:
    answer = served.say(b"GET /livez HTTP/1.1\r\n\r\n").lower()
    assert b"server:" not in answer and b"python" not in answer


def test_a_slow_client_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CLIENT_SECONDS", 0.2)
    with served.connect() as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        assert slow.recv(1) == b""  # hung up on, without a byte


def test_clients_that_only_wait_keep_no_probe_out(served: Served) -> None:
    # Given as many slow clients as there may be connections, and more
    slow = [served.connect() for _ in range(2 * CONNECTIONS)]
    for client in slow:
        client.sendall(b"GET ")
    # Then a probe is answered nevertheless: the oldest made room
    assert served.ask("/livez")[0] == 200
    assert slow[0].recv(1) == b""
    for client in slow:
        client.close()


def test_many_probes_at_once_are_all_answered(served: Served) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(served.ask("/livez")[0])) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [200] * 16


def test_a_taken_port_is_told_in_one_sentence(served: Served) -> None:
    with pytest.raises(InvalidSettings, match=rf"^WORKER_HEALTH_PORT is {served.server.port}; "):
        HealthServer("127.0.0.1", served.server.port, tuple, tuple)


def test_every_address_is_listened_at_when_none_is_named() -> None:
    server = HealthServer(None, 0, tuple, tuple)
    server.start()
    try:
        for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            connection = HTTPConnection(host, server.port, timeout=PATIENCE)
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
            connection.close()
    finally:
        server.close()


def test_a_forked_child_does_not_keep_the_port(served: Served) -> None:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child says whether its copy of the listening socket is closed
        os.write(tell, b"closed" if served.server._listener.fileno() == -1 else b"open")
        os._exit(0)
    assert os.read(told, 16) == b"closed"
    os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)
    assert served.ask("/livez")[0] == 200
