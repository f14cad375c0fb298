"""TLS of `http.request`: the connection is pinned to an address, the certificate to the name."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.tls import make_certificate
from worker.tasks.exchange import exchange, outgoing
from worker.tasks.transport import PinnedBackend, PinnedTransport


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and key, in one file, for the name hooks.example alone."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "hooks.pem", "DNS:hooks.example")


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    """A TLS server that answers one request 204."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        except OSError:  # the client did not like the certificate
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield int(listener.getsockname()[1])
    thread.join()
    listener.close()


@pytest.fixture
def get(certificate: Path) -> Iterator[Callable[[str], int]]:
    """Sends a GET, every name being 127.0.0.1, and trusting the certificate."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_verify_locations(certificate)
    backend = PinnedBackend(allow_private=True, lookup=lambda _h, _p: ["127.0.0.1"])
    transport = PinnedTransport(backend, context)

    def get(url: str) -> int:
        request = outgoing("GET", url, None, None)
        return exchange(transport, request, timeout=10, max_bytes=0).status

    yield get
    transport.close()


def test_the_name_is_verified_though_the_address_is_pinned(
    get: Callable[[str], int], port: int
) -> None:
    assert get(f"https://hooks.example:{port}/") == 204


def test_another_name_at_the_same_address_is_not_trusted(
    get: Callable[[str], int], port: int
) -> None:
    with pytest.raises(httpx.ConnectError, match="Hostname mismatch"):
        get(f"https://other.example:{port}/")
