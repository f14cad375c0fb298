"""A TCP proxy on loopback that breaks a store's connection in the ways that networks do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

#: How a statement begins that commits by itself, where it stands in no transaction.
_WRITES = ("EXECUTE", "DISCARD PLANS; EXECUTE", "WITH", "INSERT", "UPDATE", "DELETE")
#: Bytes of a query that are looked at to tell one statement from another.
_KEPT = 400


class Proxy:
    """Forwards to one server until it is told otherwise.

    Args:
        url: the server's address, credentials and path included.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        assert self._parts.hostname and self._parts.port
        self._target = (self._parts.hostname, self._parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self.refusing = False
        self.seconds = self.usual = 0.0
        self._drop_next = False
        #: Set when the reply to a commit was swallowed and its connection cut.
        self.dropped = threading.Event()
        #: What was committed: the beginning of the last statement.
        self.dropped_statement = ""
        #: How often the network was felt: connections broken or refused, and pieces held back.
        self.harmed = 0
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def url(self) -> str:
        """The server's address by way of this proxy."""
        credentials, separator, _ = self._parts.netloc.rpartition("@")
        host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        return urlunsplit(self._parts._replace(netloc=f"{credentials}{separator}{host}"))

    def lead_to(self, url: str) -> None:
        """Break every connection; new ones lead to another server with the same credentials."""
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._target = (parts.hostname, parts.port)
        self.cut()

    def cut(self) -> None:
        """Break every connection now; new ones work."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self.harmed += pair.is_open
            pair.close()

    def refuse(self) -> None:
        """Break every connection, and each new one as soon as it is made."""
        self.refusing = True
        self.cut()

    def blackhole(self) -> None:
        """Keep the connections, and let nothing through in either direction: no end either."""
        self._open.clear()

    def delay(self, seconds: float) -> None:
        """Hold back everything that passes, in both directions."""
        self.seconds = seconds

    def heal(self) -> None:
        """Forward again."""
        self.refusing, self.seconds, self._drop_next = False, 0.0, False
        self._open.set()

    def drop_reply_after_next_commit(self) -> None:
        """Forward what commits next, wait for its reply, swallow it and break the connection.

        That is a COMMIT, or a write outside of a transaction.
        """
        self.dropped.clear()
        self._drop_next = True

    def spares(self, statement: str) -> bool:
        """Whether the reply to the commit of this last statement is not dropped."""
        return False

    def close(self) -> None:
        """End it."""
        self._open.set()
        self.refuse()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.refusing:
                    self.harmed += 1
                    raise ConnectionRefusedError
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = _Pair(client, server)
            with self._lock:
                self._pairs.append(pair)
            for source, sink, upwards in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._forward, args=(pair, source, sink, upwards), daemon=True
                ).start()

    def _forward(
        self, pair: _Pair, source: socket.socket, sink: socket.socket, upwards: bool
    ) -> None:
        try:
            while data := source.recv(1 << 16):
                self._hold_back()
                commits = upwards and pair.note_statement(data)
                if commits and self._drop_next and not self.spares(pair.statement):
                    self._drop_next, pair.doomed = False, True
                    self.dropped_statement = pair.statement
                elif not upwards and pair.doomed:
                    break
                sink.sendall(data)
        except OSError:
            pass  # cut by the test, or closed by either side
        finally:
            self._open.wait()  # the end of one side is no news to the other either
            pair.close()
            if pair.doomed:
                self.dropped.set()

    def _hold_back(self) -> None:
        self.harmed += self.seconds > self.usual or not self._open.is_set()
        self._open.wait()
        if self.seconds:
            threading.Event().wait(self.seconds)


class _Pair:
    """One forwarded connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._sockets = (client, server)
        self.is_open = True
        self.doomed = False
        self.statement = ""
        self._is_together = False

    def note_statement(self, data: bytes) -> bool:
        """Keep the beginning of a simple query: Q, its length in four bytes, its text. Whether it
        commits. psycopg2 sends one at a time, BEGIN and COMMIT too."""
        if data[:1] != b"Q":
            return False
        text = " ".join(data[5:_KEPT].decode(errors="replace").replace("\0", " ").split())
        if text.startswith(("BEGIN", "COMMIT", "ROLLBACK")):
            self._is_together = text.startswith("BEGIN")
            return text.startswith("COMMIT")
        self.statement = text[:60]
        return not self._is_together and text.startswith(_WRITES)

    def close(self) -> None:
        self.is_open = False
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            end.close()


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """A proxy before the server at `url`, closed with the block."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
