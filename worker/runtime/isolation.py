"""Isolation: a process of its own for suspects, so that only the guilty kills and is condemned."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from worker.errors import LedgerError
from worker.ledger.database import Ledger
from worker.ledger.suspects import Wanted, wanted
from worker.runtime.claims import Claims
from worker.settings import environment_with, variable_of

logger = logging.getLogger(__name__)

#: Seconds between looks for suspects.
LOOK = 0.5
#: Looks in a row that must find places wanted: after an outage much looks overdue for a moment.
LOOKS = 2
#: Looks that the workers after the first ones let pass: the time that a process takes to start.
TURN = 10
#: Children that an isolated process has at least, where its worker has so many: it cannot grow.
FEWEST = 4
#: Seconds without a suspect after which an isolated process ends.
LINGER = 20.0
_PR_SET_PDEATHSIG = 1
#: Options of Celery's worker that the isolated process does without.
_ALONE = frozenset({"-B", "--beat", "-D", "--detach"})
_WITH_VALUE = frozenset(
    {"--autoscale", "--pidfile", "-s", "--schedule", "--schedule-filename", "--scheduler",
     "-S", "--statedb"}
)  # fmt: skip


class Isolation:
    """In an ordinary worker: starts an isolated process when suspects want places, at most one.

    It does so before a lease that is overdue expires, so that the process is there when the jobs
    are rescued. In an isolated process: ends it when no suspect has come for a while. An isolated
    process is this same command with `WORKER_ISOLATED` set: a prefork pool, a lease of its own, and
    the ledger's suspects as its only source.

    Args:
        ledger: asked for suspects.
        queues: this worker's.
        claims: the inventory.
        lease: this process's lease, `None` while there is none.
        isolated: whether this process is the isolated one.
    """

    def __init__(
        self,
        ledger: Ledger,
        queues: Callable[[], list[str]],
        claims: Claims,
        lease: Callable[[], str | None],
        isolated: bool,
    ) -> None:
        self._ledger, self._queues, self._claims, self._lease = ledger, queues, claims, lease
        self._stop = threading.Event()
        self._spawning = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._looks = 0
        self._parent = os.getppid()
        target = self._linger if isolated else self._watch
        self._thread = threading.Thread(target=target, name="isolation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, *, at_once: bool = False) -> None:
        """Start nothing more; ask the isolated process to drain, or to give back at once."""
        self._stop.set()
        with self._spawning:
            if self._child is not None and self._child.poll() is None:
                self._child.send_signal(signal.SIGQUIT if at_once else signal.SIGTERM)

    def join(self, seconds: float) -> None:
        """Wait until the isolated process has drained, at most `seconds`; then it is killed."""
        if self._child is None:
            return
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK * random.uniform(0.7, 1.3)):  # noqa: S311 -- jitter
            if self._child is not None and self._child.poll() is None:
                continue
            try:
                self._look()
            except LedgerError:
                self._looks = 0  # the renewal says that Postgres is away
            except Exception:
                logger.exception("Looking for suspects failed")

    def _look(self) -> None:
        lease = self._lease()
        if lease is None:
            return
        lack = wanted(self._ledger, lease, self._queues())
        self._looks = self._looks + 1 if lack.any else 0
        slots = self._claims.slots
        if lack.any and self._looks >= LOOKS + patience(lack, slots):
            self._looks = 0
            self._spawn(min(slots, max(lack.slots, FEWEST)))

    def _spawn(self, children: int) -> None:
        logger.warning("Suspects want a place: starting a process with %d children.", children)
        with self._spawning:
            if not self._stop.is_set():
                environment = environment_with(
                    **{variable_of("isolated"): "true", variable_of("concurrency"): str(children)}
                )
                self._child = subprocess.Popen(isolated_argv(sys.orig_argv), env=environment)

    def _linger(self) -> None:
        die_with_parent(signal.SIGTERM)
        busy = time.monotonic()
        while not self._stop.wait(LOOK):
            if self._claims.entries():
                busy = time.monotonic()
            if time.monotonic() - busy > LINGER or os.getppid() != self._parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return


def patience(lack: Wanted, slots: int) -> int:
    """Looks that this worker lets pass before it starts what lacks: not all of them are needed.

    The first as many workers as processes lack start at once, the next ones when those should be
    there, and so on; whoever has one already stands outside the row.
    """
    processes = lack.alone + -(-lack.slots // slots)
    return TURN * (lack.rank // max(1, processes))


def pod_of(isolated: bool) -> str:
    """What this process and those that die with it have in common: the worker that started them."""
    return f"{socket.gethostname()}:{os.getppid() if isolated else os.getpid()}"


def isolated_argv(argv: Sequence[str]) -> list[str]:
    """A worker's command line without what must not happen twice: beat, files, detaching."""
    kept: list[str] = []
    skip = False
    for word in argv:
        name, is_assigned, _ = word.partition("=")
        if skip:
            skip = False
        elif name in _WITH_VALUE:
            skip = not is_assigned
        elif name not in _ALONE:
            kept.append(word)
    return kept


def become_isolated(controller: Any, children: int) -> None:
    """Make the worker that is being set up one that runs each job in a child of its own."""
    controller.pool_cls = "prefork"
    controller.concurrency = children
    controller.pidfile = controller.statedb = None  # the worker's own, not to be shared
    controller.hostname = f"isolated-{os.getpid()}.{controller.hostname}"
    die_with_parent(signal.SIGTERM)  # its stores may keep it waiting before its threads start


def die_with_parent(with_signal: int = signal.SIGKILL) -> None:
    """Ask Linux to end this process when its parent dies; elsewhere it notices by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal, 0, 0, 0)
