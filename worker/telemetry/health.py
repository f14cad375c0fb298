"""Health over HTTP: `/livez` and `/readyz`, answered from inside the process by one thread."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from worker.errors import InvalidSettings

#: Why a probe must fail, a sentence each; nothing when all is well. It may not block.
Probe = Callable[[], Sequence[str]]

#: Seconds that one client may take, from its connection to the last byte.
CLIENT_SECONDS = 5.0
#: Bytes of a request's line and headers together.
HEAD_LIMIT = 8192
#: Connections at once; one more, and the oldest of them is dropped: a probe always gets in.
CONNECTIONS = 32
#: Bytes of a body, which nobody reads, that are let come before the connection is cut.
BODY_LIMIT = 1 << 16

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class HealthServer:
    """Answers GET and HEAD of two paths, as 200 or 503, with JSON that tells the reasons.

    One thread and one event loop whatever clients do; each of them has a few seconds and a few
    kilobytes. A forked child keeps nothing of it. An answer names no version, job or address.

    Args:
        host: the address to listen at; `None` for all of this machine's.
        port: the port; 0 lets the system choose one.
        live: why this process should be started again.
        ready: why this process does no work now.

    Raises:
        InvalidSettings: nobody can listen there.
    """

    def __init__(self, host: str | None, port: int, live: Probe, ready: Probe) -> None:
        self._probes = {b"/livez": live, b"/readyz": ready}
        self._listener = _listen(host, port)
        self._clients: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened at."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Answer from now on."""
        # A child would keep the port taken after its parent's death, and let clients wait there.
        os.register_at_fork(after_in_child=self._listener.close)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=HEAD_LIMIT)
        await self._closing.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CONNECTIONS:
            next(iter(self._clients)).cancel()
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = None
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                writer.write(await self._answer(reader))
                await writer.drain()
                await _part(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it has left, or was too slow
        except asyncio.CancelledError:
            pass  # others wait; nobody awaits this task
        finally:
            self._clients.pop(task, None)
            _hang_up(writer)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(431, ["The request's headers are too long."])
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, ["This is no request of HTTP/1."])
        method, target, _ = words
        probe = self._probes.get(target.partition(b"?")[0])
        if probe is None:
            return _response(404, ["There are /livez and /readyz here."], method)
        if method not in (b"GET", b"HEAD"):
            return _response(405, ["Only GET and HEAD are answered."], method)
        reasons = list(probe())
        return _response(503 if reasons else 200, reasons, method)


def _listen(host: str | None, port: int) -> socket.socket:
    both = host is None and socket.has_dualstack_ipv6()
    address = ("::" if both else "0.0.0.0") if host is None else host  # noqa: S104 -- as documented
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        try:
            return socket.create_server((address, port), family=family, dualstack_ipv6=both)
        except OSError:
            if not both:
                raise
            return socket.create_server(("0.0.0.0", port))  # noqa: S104 -- IPv6 is switched off
    except OSError as exc:
        where = host or "every address"
        raise InvalidSettings(
            f"WORKER_HEALTH_PORT is {port}; nobody can listen there at {where}: {exc.strerror}."
            " Give each process on a machine a port of its own, or none."
        ) from None


def _response(status: int, reasons: Sequence[str], method: bytes = b"GET") -> bytes:
    said = "ok" if status == 200 else "unhealthy" if status == 503 else "refused"
    body = json.dumps({"status": said, "reasons": list(reasons)}).encode() + b"\n"
    head = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *(["Allow: GET, HEAD"] if status == 405 else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + (b"" if method == b"HEAD" else body)


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client hang up first: closing over what it still sends would take back the answer."""
    writer.write_eof()
    left = BODY_LIMIT
    while left > 0 and (data := await reader.read(HEAD_LIMIT)):
        left -= len(data)


def _hang_up(writer: asyncio.StreamWriter) -> None:
    # A child that was forked meanwhile has this connection too: only a shutdown ends it for both.
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    writer.close()
