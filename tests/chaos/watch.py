"""When processes died, to the millisecond: an execution without an end ended then."""

from __future__ import annotations

import os
import select
import selectors
import threading
import time
from pathlib import Path

from tests.chaos.history import Journal

#: Seconds between two looks for new files.
LOOK = 0.05


class DeathWatch:
    """Watches each process that writes an execution file, and notes its death.

    Args:
        history: the folder of the files, `execution-<worker>-<pid>.jsonl`.
        journal: where deaths are noted.
    """

    def __init__(self, history: Path, journal: Journal) -> None:
        self._history, self._journal = history, journal
        self._known: set[str] = set()
        self._living = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deaths", daemon=True)

    def start(self) -> None:
        """Start to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Look a last time, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            last = self._stop.is_set()
            self._watch_new()
            for key, _ in self._living.select(0 if last else LOOK):
                self._living.unregister(key.fd)
                os.close(key.fd)
                self._note(key.data)
            if last:
                return
            if not self._living.get_map():
                self._stop.wait(LOOK)

    def _watch_new(self) -> None:
        for entry in os.scandir(self._history):
            if not entry.name.startswith("execution-") or entry.name in self._known:
                continue
            self._known.add(entry.name)
            try:
                descriptor = os.pidfd_open(_pid_of(entry.name))
            except ProcessLookupError:
                self._note(entry.name)  # it wrote and died between two looks
            else:
                self._living.register(descriptor, selectors.EVENT_READ, entry.name)

    def _note(self, file: str) -> None:
        self._journal.note("death", file=file, pid=_pid_of(file))


class Ending:
    """When one process ends, to the millisecond, whatever holds up the nemesis meanwhile.

    Args:
        pid: of a process that runs.
    """

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)
        self._at = 0.0
        self._thread = threading.Thread(target=self._run, name="ending", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.poll()
        self._at = time.monotonic()
        os.close(self._descriptor)

    def time(self) -> float:
        """By this machine's monotonic clock; of a process that has ended."""
        self._thread.join()
        return self._at


def _pid_of(file: str) -> int:
    return int(file.removesuffix(".jsonl").rpartition("-")[2])
