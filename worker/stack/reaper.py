"""What outlives a command to clean up after it. Run as a script, by path; never imported.

It waits until its parent is gone, or closes the pipe. Then it kills what the command has started
and left running, and removes the command's folders. The command may have ended in any way: of its
own accord, by Ctrl-C, by a signal, by SIGKILL.

Usage: reaper.py VARIABLE MARK FOLDER [FOLDER ...]

VARIABLE, MARK: every process whose environment had VARIABLE=MARK when it began belongs to the
command; and so does every server with data below one of the folders.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

#: Seconds between two looks at the parent.
_LOOK = 0.5
#: Seconds that a Postgres is given to end by itself: killed, it leaves its shared memory behind.
_GRACE = 5.0
#: Seconds after which what cannot be removed is left.
_PATIENCE = 60.0
_SERVERS = ("postgres", "initdb", "valkey", "redis")


def main(variable: str, mark: str, folders: list[str]) -> None:
    """Wait for the end of the parent, then leave nothing of it behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # those who end the command may mean its group
    _await_the_end()
    began = time.monotonic()
    while time.monotonic() < began + _PATIENCE:
        left = _processes(f"{variable}={mark}".encode(), folders)
        for pid in left:
            gently = time.monotonic() < began + _GRACE and _name(pid) == "postgres"
            with suppress(OSError):
                os.kill(pid, signal.SIGQUIT if gently else signal.SIGKILL)
        if not left:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            if not any(map(os.path.lexists, folders)):
                return
        time.sleep(0.05)


def _await_the_end() -> None:
    # The pipe tells it at once; but a forked child of the command may hold the other end too.
    parent = os.getppid()
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], _LOOK)
        if ready and not os.read(0, 4096):
            return


def _processes(mark: bytes, folders: list[str]) -> list[int]:
    """The pids of what belongs to the command and still runs; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with suppress(OSError):
            if pid == os.getpid() or _is_dead(entry):
                continue
            is_marked = mark in (entry / "environ").read_bytes().split(b"\0")
            if is_marked or _serves(entry, folders):
                found.append(pid)
    return found


def _serves(entry: Path, folders: list[str]) -> bool:
    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return Path(words[0]).name.startswith(_SERVERS) and any(
        word == folder or word.startswith(f"{folder}/") for word in words[1:] for folder in folders
    )


def _is_dead(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
