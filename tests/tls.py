"""TLS on loopback: certificates of our own, and a server that takes it off before another."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest


def make_certificate(path: Path, name: str) -> Path:
    """A self-signed certificate and its key, in one file, for `DNS:` or `IP:` such a name alone."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name.partition(':')[2]}"]
    command += ["-addext", f"subjectAltName={name}", "-keyout", "-", "-out", "-"]
    path.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return path


class Terminator:
    """Speaks TLS to clients and forwards what they say, in the clear, to one server.

    Attributes:
        url: where it listens, the server's credentials and path included: `rediss://…`.
        connections: how many clients have shaken hands so far.
    """

    def __init__(self, url: str, certificate: Path) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._target = (parts.hostname, parts.port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # clients hang up at will
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        )
        port = self._server.sockets[0].getsockname()[1]
        login, at, _ = parts.netloc.rpartition("@")
        self.url = urlunsplit(("rediss", f"{login}{at}127.0.0.1:{port}", parts.path, "", ""))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        """Break every connection, and end it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        back, forth = await asyncio.open_connection(*self._target)
        pumps = [
            asyncio.ensure_future(_pump(reader, forth)),
            asyncio.ensure_future(_pump(back, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, forth):
                end.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


@contextmanager
def terminated(url: str, certificate: Path) -> Iterator[Terminator]:
    """TLS before the server at `url`, closed with the block."""
    made = Terminator(url, certificate)
    try:
        yield made
    finally:
        made.close()
