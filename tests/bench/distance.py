"""A store at a distance: a proxy on loopback that delivers everything so much later.

`python -m tests.bench.distance PORT SECONDS` forwards to PORT of 127.0.0.1, each direction late by
SECONDS, and prints the port that it listens on. It never waits for one piece before it takes the
next, so a connection has its whole bandwidth; it is a process of its own for each store, whose
processor time is measured. `tests.proxy` breaks connections; this one only has to be quick.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.bench.contenders import PYTHON
from tests.bench.field import Place
from tests.bench.runs import Failed
from worker.stack.process import Process

#: Bytes of one piece.
PIECE = 1 << 18
#: Seconds until a proxy must listen.
PATIENCE = 20.0


class Forwarder:
    """Forwards connections; one thread, and no timer coarser than `select`'s microseconds.

    Args:
        port: of the server.
        seconds: by which each piece is late.
    """

    def __init__(self, port: int, seconds: float) -> None:
        self._target, self._late = ("127.0.0.1", port), seconds
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._closing: set[socket.socket] = set()
        #: What is on its way, soonest first: one delay for all, so it stays in order by itself.
        self._flying: deque[tuple[float, socket.socket, bytes]] = deque()
        #: What a receiver had no room for.
        self._unsent: dict[socket.socket, bytearray] = {}

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Forward for ever."""
        while True:
            self.step()

    def step(self) -> None:
        """Wait until something comes or is due, and pass it on."""
        pause = max(0.0, self._flying[0][0] - time.monotonic()) if self._flying else None
        waiting = [self._listener, *(s for s in self._peers if s not in self._closing)]
        readable, writable, _ = select.select(waiting, list(self._unsent), [], pause)
        for one in readable:
            if one is self._listener:
                self._accept()
            elif one in self._peers:
                self._take(one)
        for one in writable:
            self._send(one, b"")
        now = time.monotonic()
        while self._flying and self._flying[0][0] <= now:
            _, sink, data = self._flying.popleft()
            if sink in self._peers:
                self._send(sink, data) if data else self._end(sink)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)
        self._peers |= {client: server, server: client}

    def _take(self, source: socket.socket) -> None:
        try:
            data = source.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._closing.add(source)
        self._flying.append((time.monotonic() + self._late, self._peers[source], data))

    def _send(self, sink: socket.socket, data: bytes) -> None:
        pending = self._unsent.pop(sink, bytearray())
        pending += data
        try:
            sent = sink.send(pending)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(sink)
            return
        if sent < len(pending):
            self._unsent[sink] = pending[sent:]

    def _end(self, sink: socket.socket) -> None:
        """One side has closed: so is the other."""
        for one in (sink, self._peers.get(sink)):
            if one is not None:
                self._peers.pop(one, None)
                self._unsent.pop(one, None)
                self._closing.discard(one)
                one.close()


@contextmanager
def far(place: Place, seconds: float, folder: Path) -> Iterator[Place]:
    """The same place, each round trip to its stores longer by `seconds`.

    Raises:
        Failed: a proxy does not come up.
    """
    with ExitStack() as stack:
        urls, pids = [], []
        for name, url in (("postgres", place.far_postgres), ("redis", place.far_redis)):
            log = folder / f"distance-{name}-{time.monotonic_ns()}.log"
            port = str(urlsplit(url).port)
            command = [*PYTHON, "tests.bench.distance", port, str(seconds / 2)]
            process = Process(command, log=log, death_signal=signal.SIGKILL)
            stack.callback(process.kill)
            process.start()
            pids.append(process.pid or 0)
            urls.append(_moved(url, _port(process, log)))
        setting = f"{seconds * 1000:g}ms"
        yield replace(
            place, far_postgres=urls[0], far_redis=urls[1], setting=setting, between=tuple(pids)
        )


def _port(process: Process, log: Path) -> int:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.alive:
        with contextlib.suppress(OSError):
            line, newline, _ = log.read_text().partition("\n")
            if newline:
                return int(line)
        time.sleep(0.02)
    raise Failed(f"A proxy did not come up: {process.log_tail()}")


def _moved(url: str, port: int) -> str:
    parts = urlsplit(url)
    credentials, separator, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}{separator}127.0.0.1:{port}"))


if __name__ == "__main__":
    _forwarder = Forwarder(int(sys.argv[1]), float(sys.argv[2]))
    print(_forwarder.port, flush=True)
    _forwarder.serve()
