"""Our own services as child processes, started again when they end though nobody stopped them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from worker.errors import StackError
from worker.stack.process import Process

#: Seconds before a start after the first unexpected end; doubles with each end that follows.
_FIRST_DELAY: Final = 1.0
#: The longest delay; and what runs as long as this begins anew with the first.
_LONGEST_DELAY: Final = 30.0


class Service:
    """One of our own services: a program, its log, and whether it is started again.

    Args:
        name: what people call it; unique in a stack.
        argv: the program, an absolute path, and its arguments.
        environment: variables added to this process's own.
        log: where its output is appended.
        restart: whether a supervisor starts it again.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        restart: bool,
    ) -> None:
        self.name = name
        self.restart = restart
        self.log = log
        # One port cannot serve several of them; who looks after these is the supervisor.
        # And the addresses are the stack's, whatever a file says.
        own = {
            "WORKER_HEALTH_PORT": "",
            "DATABASE_URL_FILE": "",
            "REDIS_URL_FILE": "",
            **environment,
        }
        self._process = Process(argv, log=log, environment=own)

    def start(self) -> None:
        """Start it. Call it in the main thread: see `Process`.

        Raises:
            StackError: it runs already, or could not be started.
        """
        self._process.start()

    def ask_to_stop(self) -> None:
        """Send SIGTERM and do not wait, so that several can drain at once."""
        self._process.send(signal.SIGTERM)

    def stop(self, seconds: float = 30.0) -> bool:
        """Send SIGTERM; SIGKILL to its group when it has not ended within so many seconds.

        Returns whether it ended by itself.
        """
        return self._process.stop(signal.SIGTERM, seconds)

    def kill(self) -> None:
        """End it and its children as a crash does, by SIGKILL."""
        self._process.kill()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        return self._process.wait(seconds)

    def log_tail(self) -> str:
        """The last lines of its log, for an error message."""
        return self._process.log_tail()

    @property
    def pid(self) -> int | None:
        """Its pid, which is its group's too; `None` when it does not run."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.alive

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; `None` while it runs or before its start."""
        return self._process.exit_code


def stop_all(services: Iterable[Service], seconds: float) -> None:
    """Stop them at once rather than in turn; kill those that have not ended in so many seconds."""
    asked = list(services)
    for service in asked:
        service.ask_to_stop()
    deadline = time.monotonic() + seconds
    for service in asked:
        if not service.wait(max(0.0, deadline - time.monotonic())):
            service.kill()


class Supervised(Protocol):
    """What a supervisor keeps alive: a service, or a server."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""

    @property
    def exit_code(self) -> int | None:
        """How it ended."""

    def start(self) -> None:
        """Start it; `StackError` when it cannot."""


@dataclass
class _Watch:
    """What the supervisor remembers of one member."""

    member: Supervised
    started: float
    delay: float = _FIRST_DELAY
    due: float | None = None


class Supervisor:
    """Starts again what ended unexpectedly, ever more slowly. Has no thread: call `tick` often.

    Args:
        members: what runs now and should run on; services that want no restart are left alone.
        clock: seconds, rising; the delays are measured by it.
    """

    def __init__(
        self, members: Iterable[Supervised], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._watches = [
            _Watch(member, started=clock())
            for member in members
            if not isinstance(member, Service) or member.restart
        ]

    def tick(self) -> list[str]:
        """Look after every member once; what happened, one sentence each."""
        return [said for watch in self._watches for said in self._look_after(watch)]

    def _look_after(self, watch: _Watch) -> list[str]:
        now = self._clock()
        if watch.member.alive:
            if now - watch.started >= _LONGEST_DELAY:
                watch.delay = _FIRST_DELAY
            return []
        if watch.due is None:
            ended = f"{watch.member.name} ended with {watch.member.exit_code}"
            return [self._postpone(watch, now, ended)]
        if now < watch.due:
            return []
        watch.due, watch.started = None, now
        try:
            watch.member.start()
        except StackError as exc:
            return [self._postpone(watch, now, f"{watch.member.name} did not start ({exc})")]
        return [f"{watch.member.name} was started again."]

    def _postpone(self, watch: _Watch, now: float, why: str) -> str:
        watch.due = now + watch.delay
        said = f"{why}; it is started again in {watch.delay:g} s."
        watch.delay = min(watch.delay * 2, _LONGEST_DELAY)
        return said
