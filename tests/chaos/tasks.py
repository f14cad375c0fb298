"""The tasks of a chaos run. Each execution leaves its start and its end in its process's file."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Task, chain, chord, shared_task
from celery.exceptions import Ignore, Retry

from tests.chaos.history import Journal
from worker.errors import LedgerError
from worker.runtime.execution import current

Result = dict[str, Any]


@functools.cache
def _journal_of(pid: int) -> Journal:
    folder, worker = os.environ["CHAOS_HISTORY"], os.environ["CHAOS_WORKER"]
    return Journal(Path(folder) / f"execution-{worker}-{pid}.jsonl")


def journal() -> Journal:
    """This process's journal; after a fork, another."""
    return _journal_of(os.getpid())


def chaotic(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A task `chaos.<name>` that notes its start and end, and returns its execution's token."""

    def decorate(body: Callable[..., Any]) -> Any:
        kind = body.__name__

        def run(self: Task[Any, Any], **arguments: Any) -> Result:
            execution = current()
            assert execution is not None
            fence = execution.fence
            token = uuid.uuid4().hex
            story = {
                "job": fence.id, "attempt": fence.attempt, "lease": fence.lease, "run": token,
                "kind": kind,
            }  # fmt: skip
            # The nemesis sees by it that a worker's clock is off.
            skewed = {"wall": time.time()} if "CHAOS_SKEWED" in os.environ else {}
            journal().note("start", **story, **skewed)
            how = "raised"
            try:
                told = body(self, **arguments)
                how = "returned"
            except Retry:
                how = "retried"
                raise
            except Ignore:
                how = "replaced"
                raise
            finally:
                journal().note("end", how=how, **story)
            return {"run": token, "attempt": fence.attempt, **(told or {})}

        run.__module__, run.__qualname__ = body.__module__, body.__qualname__
        task: Any = shared_task(name=f"chaos.{kind}", bind=True, max_retries=None, **options)
        return task(run)

    return decorate


@chaotic()
def noop(self: Task[Any, Any]) -> None:
    """Nothing."""


@chaotic(ignore_result=True)
def ignoring(self: Task[Any, Any]) -> None:
    """Nothing, and nobody wants to know."""


@chaotic()
def cpu(self: Task[Any, Any], seconds: float) -> None:
    """Compute for a while."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(200))


@chaotic()
def sleep(self: Task[Any, Any], seconds: float) -> None:
    """Wait, as for a network."""
    time.sleep(seconds)


@chaotic()
def long(self: Task[Any, Any], seconds: float) -> None:
    """Wait for longer than a lease."""
    time.sleep(seconds)


@chaotic()
def flaky(self: Task[Any, Any], failures: int) -> None:
    """Fail, then succeed."""
    if self.request.retries < failures:
        raise self.retry(exc=ConnectionError("not yet"), countdown=0)


@chaotic()
def retrying(self: Task[Any, Any], failures: int, countdown: float) -> None:
    """Ask for a later time, then succeed."""
    if self.request.retries < failures:
        raise self.retry(countdown=countdown)


@chaotic()
def failing(self: Task[Any, Any]) -> None:
    """Fail for good: a dead letter."""
    raise ValueError("this job fails, as it should")


@chaotic()
def large(self: Task[Any, Any], size: int) -> Result:
    """Return much."""
    return {"padding": "x" * size}


@chaotic()
def parent(self: Task[Any, Any], children: int) -> None:
    """Enqueue children. A second execution enqueues others: executions are at least once."""
    for _ in range(children):
        child = uuid.uuid4().hex
        told = {"job": child, "kind": "noop", "key": None, "parent": self.request.id}
        journal().note("unsure", error="about to be enqueued", **told)  # killed in between
        with suppress(LedgerError):
            noop.apply_async(task_id=child)
            journal().note("accepted", **told)


@chaotic()
def expiring(self: Task[Any, Any]) -> None:
    """Nothing, if it is not too late for it."""


@chaotic()
def replacing(self: Task[Any, Any], by: str) -> None:
    """Be replaced by a canvas, whose last job has this one's id."""
    parts = []
    for _ in range(2):
        child = uuid.uuid4().hex
        told = {"job": child, "kind": "noop", "key": None, "parent": self.request.id}
        journal().note("unsure", error="about to be enqueued", **told)
        parts.append(noop.si().set(task_id=child))
    last = noop.si()
    raise self.replace(chain(*parts, last) if by == "chain" else chord(parts, last))


@chaotic()
def gil(self: Task[Any, Any], seconds: float) -> None:
    """Hold the GIL, as a regular expression or native code may."""
    libc = ctypes.PyDLL(None)  # PyDLL: the call keeps the GIL
    libc.usleep(int(seconds * 1e6))


@chaotic()
def dying(self: Task[Any, Any]) -> None:
    """Kill the process: poison."""
    os.kill(os.getpid(), signal.SIGKILL)


@chaotic()
def dying_once(self: Task[Any, Any], mark: str) -> None:
    """Kill the process the first time only."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
