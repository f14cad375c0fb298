"""A webhook receiver with bad manners, on 127.0.0.1: what the demo delivers to, and asks after.

Real receivers refuse, stall, and see some deliveries twice. This one does it on purpose, and
remembers everything, so that its view can be held against the ledger's.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

#: Whether a body's signature is right: the header's value or `None`, and the body.
Verify = Callable[[str | None, bytes], bool]

SIGNATURE_HEADER: Final = "X-Ledger-Signature"
KEY_HEADER: Final = "Idempotency-Key"

_MAX_BODY: Final = 1 << 24
#: Seconds for the rest of a request that has begun.
_PATIENCE: Final = 30.0
#: Seconds that a held call waits to be released.
_HELD_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Manners:
    """How badly it behaves. Who is refused or kept waiting follows from the key alone.

    Attributes:
        refused: share of keys whose first call is answered 503, half of them with Retry-After.
        slow: share of keys whose calls take their time.
        slowest: seconds, from and to, that those take.
        hold_from: after so many distinct deliveries every call waits for `release`.
    """

    refused: float = 0.2
    slow: float = 0.1
    slowest: tuple[float, float] = (0.5, 1.5)
    hold_from: int | None = None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What it has seen: calls in all, calls answered 503, calls answered 401, 2xx by key."""

    received: int
    refused: int
    bad_signatures: int
    delivered: dict[str, int]

    @property
    def duplicates(self) -> int:
        """Deliveries beyond the first of their key: execution is at-least-once."""
        return sum(self.delivered.values()) - len(self.delivered)


class Receiver:
    """The receiver, in threads of this process. A context manager: leaving it stops it.

    Args:
        verify: checks the signature of every call; answers 401 when it says no.
        manners: how badly it behaves.
    """

    def __init__(self, verify: Verify, manners: Manners | None = None) -> None:
        self._verify = verify
        self._manners = manners or Manners()
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self._received = self._refused = self._bad_signatures = 0
        self._stopping, self._released = threading.Event(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="receiver"
        )

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Answer calls from now on."""
        self._thread.start()

    def release(self) -> None:
        """Let held calls go on, and hold none from now on."""
        self._released.set()

    def stop(self) -> None:
        """Answer no more, and end every waiting call at once."""
        self._stopping.set()
        self._released.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def deliveries(self) -> Deliveries:
        """What it has seen until now."""
        with self._lock:
            return Deliveries(
                self._received, self._refused, self._bad_signatures, dict(self._delivered)
            )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def answer(self, key: str | None, signature: str | None, body: bytes) -> tuple[int, str | None]:
        """The status of one call, and its Retry-After, `None` for none."""
        genuine = self._verify(signature, body)
        with self._lock:
            self._received += 1
            self._bad_signatures += not genuine
        if not genuine:
            return 401, None
        if not key:
            return 400, None
        self._hold()
        if self._refuses(key):
            return 503, "0" if _share(key, "hint") < 0.5 else None
        self._take_time(key)
        with self._lock:
            self._delivered[key] += 1
        return 200, None

    def _hold(self) -> None:
        threshold = self._manners.hold_from
        with self._lock:
            held = threshold is not None and len(self._delivered) >= threshold
        if held:
            self._released.wait(_HELD_SECONDS)

    def _refuses(self, key: str) -> bool:
        with self._lock:
            self._calls[key] += 1
            refused = self._calls[key] == 1 and _share(key, "refused") < self._manners.refused
            self._refused += refused
        return refused

    def _take_time(self, key: str) -> None:
        if _share(key, "slow") < self._manners.slow:
            least, most = self._manners.slowest
            self._stopping.wait(least + (most - least) * _share(key, "slowness"))


class _Server(ThreadingHTTPServer):
    # socketserver's default of 5 makes a crowd of callers wait for a second SYN.
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        super().__init__(address, _Handler)
        self.receiver = receiver

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a caller that was killed has hung up, which is what the demo is about."""


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0, one call per connection: no idle connection keeps a thread after `stop`.
    server: _Server
    timeout = _PATIENCE

    def do_POST(self) -> None:
        """One delivery."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY:
            self.send_error(413 if length.isdecimal() else 411)
            return
        body = self.rfile.read(int(length))
        status, retry_after = self.server.receiver.answer(
            self.headers.get(KEY_HEADER), self.headers.get(SIGNATURE_HEADER), body
        )
        content = json.dumps({"received": status == 200}).encode()
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the counts say it better."""


def _share(key: str, purpose: str) -> float:
    """A number from 0 to below 1 that is the same for every call of a key."""
    digest = hashlib.sha256(f"{purpose}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
