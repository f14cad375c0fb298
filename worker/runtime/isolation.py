"""Isolation: a process of its own for suspects, so that only the guilty kills and is condemned."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable

from celery.worker import state as worker_state

from worker.errors import LedgerError
from worker.ledger.database import Ledger
from worker.ledger.suspects import Wanted, has_place, wanted
from worker.runtime.claims import Claims
from worker.runtime.drain import GONE, ISOLATED_GONE
from worker.runtime.launch import Launch
from worker.runtime.tether import Origin, Tether
from worker.settings import Settings, environment_with, variable_of

logger = logging.getLogger(__name__)

#: Seconds between looks for suspects.
LOOK = 0.5
#: Looks in a row that must find places wanted: after an outage much looks overdue for a moment.
LOOKS = 2
#: Looks that the workers after the first ones let pass: the time that a process takes to start on a
#: busy machine. Were it less, they would start too, and make all of them slower.
TURN = 20
#: Children that an isolated process has at least, where its worker has so many: it cannot grow.
FEWEST = 4
#: Children that it has at most: each is a process, and a worker of 200 threads has not the memory
#: for 200 processes. The other workers start processes too, and what is left waits its turn.
MOST = 16
#: Seconds by which an isolated process's drain ends before its worker's. Its last act may take it
#: `GONE` longer, and it must be gone when its worker kills what is left of it.
EARLIER = GONE - ISOLATED_GONE + 0.5
#: Seconds without a suspect after which an isolated process ends.
LINGER = 20.0
#: Seconds until the next try after a process that ended before it held a lease, doubling up to
#: the second: whatever keeps it from starting is seldom over soon.
FAILED_PAUSE, LONGEST_PAUSE = 5.0, 300.0


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
        settings: they say whether this process is the isolated one.
        pod: handed down to the isolated process.
        launch: what to start for suspects, or why nothing can be.
    """

    def __init__(
        self,
        ledger: Ledger,
        queues: Callable[[], list[str]],
        claims: Claims,
        lease: Callable[[], str | None],
        settings: Settings,
        pod: str,
        launch: Callable[[], Launch | str],
    ) -> None:
        self._ledger, self._queues, self._claims, self._lease = ledger, queues, claims, lease
        self._settings, self._pod, self._launch = settings, pod, launch
        self._stop = threading.Event()
        self._spawning = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._tether: Tether | None = None
        self._looks = 0
        self._is_up = False  # whether the child was seen to hold a lease
        self._pause, self._not_before = 0.0, 0.0
        self._told: str | None = None
        target = self._linger if settings.isolated else self._watch
        self._thread = threading.Thread(target=target, name="isolation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, *, at_once: bool = False) -> None:
        """Start nothing more; ask the isolated process to drain, or to give back at once."""
        self._stop.set()
        with self._spawning:
            if self._child is not None and self._child.poll() is None:
                if self._tether is not None:
                    self._tether.ask()
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

    def was_asked(self, seconds: float) -> bool:
        """Whether this process ends because somebody asked: always, but in an isolated process
        whose worker has not asked it to within `seconds`. Then one of its jobs ends it."""
        if not self._settings.isolated:
            return True
        return Origin.read(self._settings.isolated).has_asked(seconds)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK * random.uniform(0.7, 1.3)):  # noqa: S311 -- jitter
            try:
                if self._child is not None and self._child.poll() is None:
                    self._is_up = self._is_up or has_place(self._ledger, self._pod)
                    continue
                self._learn()
                self._look()
            except LedgerError:
                self._looks = 0  # the renewal says that Postgres is away
            except Exception:
                logger.exception("Looking for suspects failed")
        if self._child is not None:
            # For the kernel the child's parent is this thread: did it end here, a second SIGTERM
            # would follow the one of `stop`.
            self._child.wait()

    def _look(self) -> None:
        lease = self._lease()
        if lease is None:
            return
        lack = wanted(self._ledger, lease, self._queues())
        self._looks = self._looks + 1 if lack.any else 0
        slots = self._claims.slots
        if lack.any and self._looks >= LOOKS + patience(lack, slots):
            self._looks = 0
            self._spawn(min(slots, MOST, max(lack.slots, FEWEST)))

    def _learn(self) -> None:
        """Note how the last isolated process ended: one that never held a lease cannot start."""
        if self._child is None:
            return
        code, self._child = self._child.returncode, None
        if self._tether is not None:
            self._tether.close()
            self._tether = None
        if self._is_up or not code:
            self._pause = 0.0
            return
        first = not self._pause
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or FAILED_PAUSE)
        self._not_before = time.monotonic() + self._pause
        if first:
            logger.error(
                "The process for suspects has ended with %d before it could begin; what it said"
                " stands above. Suspects run at other workers, or wait.", code
            )  # fmt: skip

    def _spawn(self, children: int) -> None:
        if time.monotonic() < self._not_before:
            return
        launch = self._launch()
        if isinstance(launch, str):
            if launch != self._told:
                logger.warning(
                    "Suspects wait: this worker starts no process for them, because %s. They run at"
                    " another worker: start one by the command of Celery or of this service.",
                    launch,
                )  # fmt: skip
            self._told = launch
            return
        logger.warning("Suspects want a place: starting a process with %d children.", children)
        self._is_up = False
        with self._spawning:
            if not self._stop.is_set():
                self._tether = Tether()
                self._child = subprocess.Popen(
                    launch.argv,
                    cwd=launch.cwd,
                    env={
                        **self._environment(children, self._tether.theirs),
                        **launch.variables,
                    },
                    pass_fds=(self._tether.theirs,),
                )

    def _environment(self, children: int, pipe: int) -> dict[str, str]:
        """What makes of this worker's command an isolated process with so many children."""
        drain = max(0.0, self._settings.drain_seconds - EARLIER)
        return environment_with(
            **{
                variable_of("isolated"): str(Origin(os.getpid(), self._pod, pipe)),
                variable_of("concurrency"): str(children),
                variable_of("drain_seconds"): str(drain),
            }
        )

    def _linger(self) -> None:
        assert self._settings.isolated is not None
        parent = Origin.read(self._settings.isolated).pid
        busy = time.monotonic()
        while not self._stop.wait(LOOK):
            if self._claims.entries():
                busy = time.monotonic()
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if time.monotonic() - busy > LINGER:
                logger.info("No suspect is left: isolated process %d ends.", os.getpid())
                worker_state.should_stop = 0  # no signal, which Celery would call a shutdown
                return


def patience(lack: Wanted, slots: int) -> int:
    """Looks that this worker lets pass before it starts what lacks: not all of them are needed.

    The first as many workers as processes lack start at once, the next ones when those should be
    there, and so on; whoever has one already stands outside the row.
    """
    processes = lack.alone + -(-lack.slots // min(slots, MOST))
    return TURN * (lack.rank // max(1, processes))


def pod_of(settings: Settings) -> str:
    """What a worker and its isolated process have in common, because they die together: a word
    that the worker makes up."""
    return Origin.read(settings.isolated).pod if settings.isolated else str(uuid.uuid4())
