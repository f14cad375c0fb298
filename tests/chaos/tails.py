"""Execution files while they grow: only what is new is read, or only their ends."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.chaos.history import Event

#: Bytes at the end of a file in which the jobs that a process holds have begun: 40 s at full speed.
END = 4 << 20
#: Bytes that hold the last few events of a file.
LAST = 1 << 14

_MOMENT = re.compile(rb'"event": "(start|end)"[^\n]*?"job": "([^"]+)", "attempt": (\d+)')


class Tail:
    """What is appended to execution files from now on.

    Args:
        history: their folder.
        prefix: what their names begin with.
    """

    def __init__(self, history: Path, prefix: str = "execution-") -> None:
        self._history, self._prefix = history, prefix
        self._read = self._sizes()

    def new(self, word: str = "") -> Iterator[tuple[str, Event]]:
        """The events since the last call whose line contains `word`, with their file's name."""
        for name, size in self._sizes().items():
            begin = self._read.get(name, 0)
            if size == begin:
                continue
            whole = _whole(_bytes(self._history / name, begin, size))
            self._read[name] = begin + len(whole)
            for line in whole.splitlines():
                if word.encode() in line:
                    yield name, json.loads(line)

    def _sizes(self) -> dict[str, int]:
        with os.scandir(self._history) as entries:
            return {e.name: e.stat().st_size for e in entries if e.name.startswith(self._prefix)}


def moments(files: Iterable[Path]) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """The executions, as (job, attempt), that lately started in these files, and that ended."""
    started: set[tuple[str, int]] = set()
    ended: set[tuple[str, int]] = set()
    for path in files:
        for event, job, attempt in _MOMENT.findall(_end(path, END)):
            noted = started if event == b"start" else ended
            noted.add((job.decode(), int(attempt)))
    return started, ended


def runs_something(path: Path) -> bool:
    """Whether a process that runs one job at a time, and writes `path`, is in the midst of one."""
    lines = _end(path, LAST).splitlines()
    return bool(lines) and b'"event": "start"' in lines[-1]


def died_of_poison(path: Path) -> bool:
    """Whether the last that `path` tells is a job that kills, begun and not ended."""
    kept: dict[str, str] = {}
    for line in _end(path, LAST).splitlines():
        event = json.loads(line)
        if event["event"] == "start":
            kept[event["run"]] = event["kind"]
        elif event["event"] == "end":
            kept.pop(event["run"], None)
    return any(kind in ("dying", "dying_once") for kind in kept.values())


def _end(path: Path, most: int) -> bytes:
    """The whole lines in a file's last `most` bytes; nothing when there is no file."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return b""
    begin = max(0, size - most)
    text = _whole(_bytes(path, begin, size))
    return text.partition(b"\n")[2] if begin else text


def _whole(text: bytes) -> bytes:
    return text[: text.rfind(b"\n") + 1]


def _bytes(path: Path, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)
