"""Count what workers run, without asking any store: shared counters that cost a job 0.2 µs.

Every contender's tasks call `tick`, so that all are counted, and checked, the same way.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import threading
from pathlib import Path

#: Names the folder of the counters, in the environment of a worker.
VARIABLE = "BENCH_TALLY"
#: Threads of one process that may count.
_THREADS = 1024
_COUNT = struct.Struct("q")


class _Slots(threading.local):
    """Each thread's own counter: nobody else writes it, so no lock is needed."""

    offset = -1
    count = 0


class _Tally:
    def __init__(self, folder: Path) -> None:
        path = folder / f"tally-{os.getpid()}"
        with path.open("x+b") as file:  # made once in a process, or it would begin anew at 0
            file.truncate(_THREADS * _COUNT.size)
            self._shared = mmap.mmap(file.fileno(), 0)
        self._numbers = itertools.count()
        self._slots = _Slots()

    def tick(self) -> None:
        slots = self._slots
        if slots.offset < 0:
            slots.offset = next(self._numbers) * _COUNT.size
        slots.count += 1
        _COUNT.pack_into(self._shared, slots.offset, slots.count)


_tally: _Tally | None = None
_making = threading.Lock()


def tick() -> None:
    """One more job has run in this process."""
    (_tally or _made()).tick()


def _made() -> _Tally:
    """This process's tally; a pool's threads all come here at once, and one of them makes it."""
    global _tally
    with _making:
        if _tally is None:
            _tally = _Tally(Path(os.environ[VARIABLE]))
        return _tally


def _forget() -> None:
    global _tally, _making
    _tally, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def ticked(folder: Path) -> int:
    """How many jobs all processes have run."""
    return sum(sum(memoryview(path.read_bytes()).cast("q")) for path in folder.glob("tally-*"))
