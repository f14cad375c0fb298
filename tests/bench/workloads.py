"""What a job does, the same for every contender."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.bench.tally import VARIABLE, tick

#: Bytes of the large result.
LARGE = 10 * 1024
_CPU, _SLEEP = 0.001, 0.010
_latencies: int | None = None


def noop() -> None:
    """Nothing."""
    tick()


def cpu() -> None:
    """A millisecond of this thread's processor time."""
    until = time.thread_time() + _CPU
    while time.thread_time() < until:
        pass
    tick()


def sleep() -> None:
    """Ten milliseconds of waiting, as for an answer over the network."""
    time.sleep(_SLEEP)
    tick()


def large() -> str:
    """A result of 10 KiB."""
    tick()
    return "x" * LARGE


def stamp(number: int) -> None:
    """Note when job `number` starts."""
    global _latencies
    at = time.monotonic()
    if _latencies is None:
        path = Path(os.environ[VARIABLE]) / f"starts-{os.getpid()}"
        _latencies = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_latencies, f"{number} {at:.6f}\n".encode())
    tick()


def _forget() -> None:
    global _latencies
    _latencies = None


os.register_at_fork(after_in_child=_forget)

#: By name; `stamp` alone takes an argument.
WORKLOADS: dict[str, Callable[..., Any]] = {
    "noop": noop, "cpu": cpu, "sleep": sleep, "large": large, "stamp": stamp,
}  # fmt: skip


async def _noop() -> None:
    noop()


async def _cpu() -> None:
    cpu()


async def _sleep() -> None:
    await asyncio.sleep(_SLEEP)
    tick()


#: The same for asyncio.
COROUTINES: dict[str, Callable[[], Awaitable[None]]] = {
    "noop": _noop, "cpu": _cpu, "sleep": _sleep,
}  # fmt: skip
