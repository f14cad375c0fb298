"""Choose TCP ports on the loopback address."""

from __future__ import annotations

import json
import secrets
import socket
from pathlib import Path

from worker.errors import StackError

#: Below the range that kernels take ports of outgoing connections from (32768 and up on Linux):
#: there, a client that retries while its server is away can connect to itself, and hold the port.
_FROM, _TO = 20_000, 32_000


def choose(preferred: int | None) -> int:
    """The preferred port when it is free, else a free one. It may be taken before it is used.

    Raises:
        StackError: no port is free.
    """
    if preferred is not None and _is_free(preferred):
        return preferred
    for _ in range(200):
        port = _FROM + secrets.randbelow(_TO - _FROM)
        if _is_free(port):
            return port
    raise StackError(f"No free TCP port was found on 127.0.0.1 from {_FROM} to {_TO}.")


def demand(port: int) -> None:
    """Make sure that a port which somebody has chosen can be used.

    Raises:
        StackError: something has it.
    """
    if not _is_free(port):
        raise StackError(
            f"Port {port} of 127.0.0.1 is taken; stop what has it, or choose another --port."
        )


def remembered(file: Path) -> dict[str, int]:
    """The ports by name that were written to `file` by an earlier start; none where it is not."""
    try:
        said = json.loads(file.read_text())
        return {str(name): int(port) for name, port in said.items() if 0 < int(port) < 65536}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier one that wait for their end do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
