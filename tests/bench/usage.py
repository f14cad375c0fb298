"""What processes use: processor time and memory, from /proc (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def tree(pid: int | None) -> list[int]:
    """A process and all below it; empty when there is none."""
    if pid is None:
        return []
    found = [pid]
    for child in _children(pid):
        found += tree(child)
    return found


def _children(pid: int) -> list[int]:
    """Those of every thread; what ends meanwhile, as Postgres's backends do, has none."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                found += map(int, text.split())
    return found


def seconds(roots: Iterable[int | None]) -> float:
    """Processor seconds so far of these trees, and of their children that were waited for."""
    return sum(_seconds(pid) for root in roots for pid in tree(root))


def busy() -> float:
    """Processor seconds so far of the whole machine, all cores together; what a host took too."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    return sum(int(fields[at]) for at in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


def memory(roots: Iterable[int | None]) -> int:
    """Bytes of memory of these trees; what processes share is counted once, in parts."""
    return sum(_memory(pid) for root in roots for pid in tree(root))


class Meter:
    """How much of the machine goes to processes that are no part of a run, from now on.

    Args:
        roots: the run's own processes that live on; this one, and those of its children that end
            and are waited for, count as its own too.
    """

    def __init__(self, roots: Iterable[int | None]) -> None:
        self._roots = list(roots)
        self._began, self._machine, self._own = time.monotonic(), busy(), self._spent()

    def others(self) -> float:
        """The part of all cores' time since the start, from 0 to 1."""
        passed = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        taken = busy() - self._machine - (self._spent() - self._own)
        return max(0.0, taken / passed) if passed else 0.0

    def _spent(self) -> float:
        return seconds(self._roots) + sum(os.times()[:4])


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, cutime, cstime: proc(5), counted from the state, which is the first here.
    return sum(int(fields[at]) for at in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
