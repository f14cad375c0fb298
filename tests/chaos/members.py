"""What a rig is made of: members that are started again, and wires that can be broken."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.tails import died_of_poison
from worker.stack.process import Process

#: Seconds before a member that ended is started again.
PAUSE = 0.5


class Wires:
    """The proxies to one store, in a process of their own."""

    def __init__(self, store: str, url: str, distance: float, log: Path) -> None:
        self._url, self._distance = url, distance
        self._made: set[str] = set()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.wire"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        self.store = store

    def url_for(self, member: str) -> str:
        """The store's address for one member, by a wire of its own."""
        self._made.add(member)
        return str(self.tell(member, "make", url=self._url, distance=self._distance))

    def tell(self, member: str, do: str, **arguments: Any) -> Any:
        """Let a member's wire do something; see `Wire`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"name": member, "do": do, **arguments}) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def lead_to(self, url: str) -> None:
        """Let every wire lead to another server."""
        self._url = url
        for member in self._made:
            self.tell(member, "lead_to", url=url)

    def heal(self) -> None:
        """Heal every wire."""
        for member in self._made:
            self.tell(member, "heal")

    def close(self) -> None:
        """End the process; it ends by itself when its stdin is closed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(10)


@dataclass
class Member:
    """A worker, keeper or producer: a command that is started again when it ends.

    Attributes:
        name: "w1", "keeper2", "p1".
        pool: a worker's, else empty.
        argv: the command, with `{node}` for the name of this start.
        environment: variables added to this process's own.
        node: the name of this start, never used again.
        extra: more variables, of every start while they stand here.
        expected: the exit codes that this start may end with, each with the fault that asked.
        started_pid: the pid of this start, also when it has ended.
    """

    name: str
    pool: str
    argv: list[str]
    environment: dict[str, str]
    log: Path
    node: str = ""
    starts: int = 0
    due: float | None = None
    is_stopped: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    expected: dict[int, str] = field(default_factory=dict)
    started_pid: int | None = None
    process: Process | None = None

    def start(self) -> None:
        """Start it, under a new name."""
        self.starts += 1
        self.node = f"{self.name}-{self.starts}@chaos"
        own = {"CHAOS_WORKER": f"{self.name}-{self.starts}"}
        self.process = Process(
            [word.replace("{node}", self.node) for word in self.argv],
            log=self.log,
            environment={**self.environment, **own, **self.extra},
            death_signal=signal.SIGKILL,
        )
        self.expected = {}
        self.due = None
        self.process.start()
        self.started_pid = self.process.pid

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self.process.pid if self.process else None

    def send(self, number: signal.Signals) -> None:
        """Send it alone a signal."""
        if self.process is not None:
            self.process.send(number)

    def end(self, number: signal.Signals, fault: str) -> None:
        """Send it a signal that ends it, on behalf of `fault`; it may then drain, or just die."""
        self.expected[-number] = fault
        if number == signal.SIGTERM:
            self.expected[0] = fault
        self.send(number)

    @property
    def prefix(self) -> str:
        """What the names of this start's execution files begin with."""
        return f"execution-{self.node.partition('@')[0]}-"

    def cause_of(self, code: int, history: Path) -> str | None:
        """Which fault let this start end with `code`, if any did."""
        own = history / f"{self.prefix}{self.started_pid}.jsonl"
        if code == -signal.SIGKILL and code not in self.expected and died_of_poison(own):
            return "poison"
        return self.expected.get(code)

    @property
    def children(self) -> list[int]:
        """The pids of a prefork worker's pool; its isolated process is not one of them."""
        found: list[int] = []
        for entry in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(pid) for pid in entry.read_text().split()]
        return [pid for pid in found if not _is_isolated(pid)]

    def look_after(self) -> int | None:
        """Start it again when it has ended; its exit code, once, when it just has."""
        if self.is_stopped or self.process is None or self.process.alive:
            return None
        if self.due is None:
            self.due = time.monotonic() + PAUSE
            return self.process.exit_code
        if time.monotonic() >= self.due:
            self.start()
        return None


def _is_isolated(pid: int) -> bool:
    try:
        return b"WORKER_ISOLATED=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return True  # gone
