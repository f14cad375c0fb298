"""On a real prefork pool and a real event loop: what Celery forgets, and what we keep."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool
from kombu.asynchronous import Hub, set_event_loop

from worker.runtime.pipes import Pipes

#: More than any pipe holds.
LARGE = "x" * 3_000_000
#: A pipe that nobody reads holds about so many bytes (Linux: 64 KiB).
FULL = 60_000


def echo(text: str) -> str:
    return text


def large() -> str:
    return LARGE


class Looped:
    """A prefork pool of one child on a loop, as a worker has it."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.hub = pool, Hub()
        set_event_loop(self.hub)
        self.results: list[str] = []
        self._loop: Any = None

    @property
    def child(self) -> Any:
        return self.pool._pool._pool[0]

    def begin(self, pipes: Pipes | None = None) -> None:
        """As Celery's `asynloop` begins, at the start and after each reconnection."""
        if pipes is not None:
            pipes.prepare(self.hub)
        self.pool.register_with_event_loop(self.hub)
        self._loop = self.hub.create_loop()

    def stop_child(self) -> None:
        """SIGSTOP the child, once Celery has heard that it is up."""
        assert self.turn_until(lambda: self.child.inqW_fd in self.pool._pool._fileno_to_inq)
        os.kill(self.child.pid, signal.SIGSTOP)

    def lose_connection(self) -> None:
        """As Celery's `asynloop` ends when the broker connection breaks."""
        self.hub.reset()

    def send(self, target: Callable[..., str], *args: str) -> None:
        self.pool.on_apply(target, args, callback=self.results.append)

    def read_half(self, pipes: Pipes) -> None:
        """Let a large result come, and read a part of it; its child is stopped."""
        inner = self.pool._pool
        self.send(large)
        assert self.turn_until(lambda: not inner.outbound_buffer and not inner._active_writers)
        while self._waiting() < FULL:  # the loop does not turn: nothing is read
            time.sleep(0.01)
        os.kill(self.child.pid, signal.SIGSTOP)
        assert self.turn_until(lambda: bool(pipes._reads))
        assert self.results == []

    def _waiting(self) -> int:
        """Bytes in the pipe of results."""
        found = array.array("i", [0])
        fcntl.ioctl(self.child.outqR_fd, termios.FIONREAD, found)
        return found[0]

    def turn_until(self, true: Callable[[], bool], seconds: float = 20.0) -> bool:
        """Turn the loop until `true()`; whether it came to be."""
        deadline = time.monotonic() + seconds
        self.hub.call_later(0.05, lambda: None)  # the poll must not block for ever
        while not true() and time.monotonic() < deadline:
            next(self._loop)
            self.hub.call_later(0.05, lambda: None)
        return true()


@pytest.fixture
def looped() -> Iterator[Looped]:
    with Celery("pool", set_as_current=False) as app:
        pool: Any = TaskPool(1, app=app, threads=False, initargs=(app, "pool@here"))
        pool.start()
        made = Looped(pool)
        yield made
        os.kill(made.child.pid, signal.SIGKILL)  # it may be stopped, which no other signal ends
        pool.terminate()
        set_event_loop(None)
        made.hub.close()


def test_a_result_that_was_half_read_is_read_to_its_end(looped: Looped) -> None:
    # Given a child's large result, of which the loop has read a part
    pipes = Pipes(looped.pool)
    looped.begin(pipes)
    looped.read_half(pipes)
    # When the broker connection breaks and comes back
    looped.lose_connection()
    looped.begin(pipes)
    os.kill(looped.child.pid, signal.SIGCONT)
    # Then the result comes, and the next one too
    assert looped.turn_until(lambda: looped.results == [LARGE])
    assert pipes._reads == {}
    looped.send(echo, "next")
    assert looped.turn_until(lambda: looped.results[1:] == ["next"])


def test_a_job_that_was_half_written_is_written_to_its_end(looped: Looped) -> None:
    # Given a child that does not read, and a large job of which a part is in its pipe
    pipes = Pipes(looped.pool)
    looped.begin(pipes)
    looped.stop_child()
    looped.send(echo, LARGE)
    assert looped.turn_until(lambda: bool(looped.pool._pool._active_writers))
    # When the broker connection breaks and comes back, and the child reads
    looped.lose_connection()
    looped.begin(pipes)
    os.kill(looped.child.pid, signal.SIGCONT)
    # Then the child gets the job, and the next one too
    assert looped.turn_until(lambda: looped.results == [LARGE])
    looped.send(echo, "next")
    assert looped.turn_until(lambda: looped.results[1:] == ["next"])


def test_without_us_celery_forgets_both(looped: Looped) -> None:
    # If this fails, Celery has learnt it, and `worker.runtime.pipes` can go.
    looped.begin()
    looped.stop_child()
    looped.send(echo, LARGE)
    assert looped.turn_until(lambda: bool(looped.pool._pool._active_writers))
    looped.lose_connection()
    looped.begin()
    os.kill(looped.child.pid, signal.SIGCONT)
    assert not looped.turn_until(lambda: bool(looped.results), 2)


def test_what_a_dead_child_has_left_is_dropped(looped: Looped) -> None:
    # Given a result that is half read
    pipes = Pipes(looped.pool)
    looped.begin(pipes)
    looped.read_half(pipes)
    # When its child dies while the broker connection is away
    looped.lose_connection()
    dead = looped.child.pid
    os.kill(dead, signal.SIGKILL)
    looped.begin(pipes)
    # Then another child takes its place, and works
    assert looped.turn_until(lambda: looped.child.pid != dead)
    assert looped.turn_until(lambda: looped.child.inqW_fd in looped.pool._pool._fileno_to_inq)
    looped.send(echo, "next")
    assert looped.turn_until(lambda: looped.results == ["next"])


def test_a_child_that_died_when_the_loop_went_down_does_not_end_the_worker(
    looped: Looped,
) -> None:
    # Given a child that Celery no longer watches, and has not let go yet
    looped.begin()
    looped.pool._pool._untrack_child_process(looped.child, looped.hub)
    # When a loop begins, Celery alone fails
    with pytest.raises(ValueError, match="file descriptor is None"):
        looped.begin()
    # Then we do not
    looped.begin(Pipes(looped.pool))
