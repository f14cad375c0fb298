"""What a run leaves behind: processes that should be gone, and logs that say what should not be."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

#: Seconds that what a member left behind is given to go by itself, once the member is gone.
GRACE = 5.0
#: What no log of a worker or keeper may say: the last is of a process that hung while it ended.
ALARMS = re.compile("CRITICAL|Unrecoverable|Timeout \\(")
#: Sentences about one log at the most.
MOST = 5


def orphans(history: Path) -> dict[int, str]:
    """The processes of the run with this history, by pid, with their commands."""
    mark, found = f"CHAOS_HISTORY={history}".encode(), {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(entry.name)] = command.strip()
    return found


def left_behind(history: Path, grace: float = GRACE) -> list[str]:
    """Wait for what still ends, kill what does not; a sentence for each of these."""
    until = time.monotonic() + grace
    while (left := orphans(history)) and time.monotonic() < until:
        time.sleep(0.05)
    kill(left)
    return [f"process {pid} outlived its member: {command}" for pid, command in left.items()]


def kill(pids: Iterable[int]) -> None:
    """SIGKILL these."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alarms(logs: Iterable[Path]) -> list[str]:
    """Where logs sound an alarm, with what they say."""
    found: list[str] = []
    for path in logs:
        with path.open(errors="replace") as file:
            those = [
                f"{path.name}, line {number}: {line.strip()[:300]}"
                for number, line in enumerate(file, 1)
                if ALARMS.search(line)
            ]
        found += those[:MOST]
        if len(those) > MOST:
            found.append(f"{path.name}: {len(those) - MOST} more such lines")
    return found
