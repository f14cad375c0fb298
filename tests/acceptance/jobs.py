"""Tasks of the acceptance tests. Each run leaves a line in a file: what really ran, how often."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject


def note(log: str, word: str) -> None:
    """Append one line in one write, so that lines of several processes never mix."""
    with Path(log).open("a") as file:
        file.write(f"{word} {os.getpid()} {time.time():.3f}\n")


@shared_task(name="test.note")
def run(log: str, word: str = "ran") -> str:
    note(log, word)
    return word


@shared_task(name="test.hold")
def hold(log: str, gate: str, seconds: float = 60.0) -> str:
    """Run until the file `gate` exists."""
    note(log, "start")
    deadline = time.monotonic() + seconds
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    note(log, "end")
    return "held"


@shared_task(name="test.sleep")
def sleep(log: str, seconds: float) -> float:
    note(log, "start")
    time.sleep(seconds)
    note(log, "end")
    return seconds


@shared_task(name="test.die")
def die(log: str) -> None:
    """Kill the process that runs this, as a crash in native code would."""
    note(log, "die")
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="test.die_with")
def die_with(log: str, whom: str) -> None:
    """Kill this process and more: the `parent` of an isolated child, or the whole `pod` at once.

    An ordinary worker's parent is the test. The pod is the worker's process group, killed in one
    call as a cgroup is by the OOM killer.
    """
    isolated = "WORKER_ISOLATED" in os.environ
    note(log, f"die-{'isolated' if isolated else 'ordinary'}")
    if whom == "pod":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    elif isolated:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="test.exhaust")
def exhaust(log: str) -> None:
    note(log, "exhaust")
    raise MemoryError("no more")


@shared_task(name="test.leave")
def leave(log: str) -> None:
    note(log, "leave")
    sys.exit(3)


@shared_task(name="test.flaky", bind=True, max_retries=5)
def flaky(self: Task[Any, Any], log: str, failures: int, throw: bool = True) -> int:
    """Ask to be retried `failures` times."""
    note(log, f"try-{self.request.retries}")
    if self.request.retries < failures:
        self.retry(countdown=0.05, throw=throw)
        return -1
    return int(self.request.retries)


@shared_task(
    name="test.auto", autoretry_for=(ValueError,), retry_backoff=False, retry_jitter=False,
    default_retry_delay=0, max_retries=2, ignore_result=True,
)  # fmt: skip
def auto(log: str) -> None:
    note(log, "auto")
    raise ValueError("always")


@shared_task(name="test.add")
def add(x: int, y: int) -> int:
    return x + y


@shared_task(name="test.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@shared_task(name="test.fails")
def fails(message: str = "no") -> None:
    raise ValueError(message)


@shared_task(name="test.note_error")
def note_error(request: Any, exc: Any, traceback: Any, log: str) -> None:
    note(log, "errback")


@shared_task(name="test.unserializable")
def unserializable() -> object:
    return object()


@shared_task(name="test.large")
def large(size: int) -> str:
    return "x" * size


@shared_task(name="test.parent", bind=True)
def parent(self: Task[Any, Any], log: str, children: int) -> list[str]:
    return [run.delay(log, f"child-{number}").id for number in range(children)]


@shared_task(name="test.progress", bind=True)
def progress(self: Task[Any, Any], gate: str) -> str:
    self.update_state(state="PROGRESS", meta={"done": 3})
    while not Path(gate).exists():
        time.sleep(0.02)
    return "done"


@shared_task(name="test.replace", bind=True)
def replace(self: Task[Any, Any], x: int) -> Any:
    return self.replace(add.s(x, 1))


@shared_task(name="test.replace_by_chain", bind=True)
def replace_by_chain(self: Task[Any, Any], x: int) -> Any:
    return self.replace(add.s(x, 1) | add.s(10))


@shared_task(name="test.limited", rate_limit="5/s")
def limited(log: str) -> None:
    note(log, "limited")


@shared_task(name="test.regex")
def regex(log: str) -> None:
    """Hold the GIL for several seconds."""
    note(log, "regex")
    re.match(r"(a+)+$", "a" * 27 + "b")
    note(log, "regex-end")


@shared_task(name="test.hold_then_retry", bind=True)
def hold_then_retry(self: Task[Any, Any], log: str, gate: str) -> int:
    """Hold the first time, then ask to be retried."""
    if self.request.retries:
        note(log, "retried")
        return int(self.request.retries)
    note(log, "start")
    while not Path(gate).exists():
        time.sleep(0.02)
    note(log, "end")
    raise self.retry(countdown=0.1)


@shared_task(name="test.reject", bind=True)
def reject(self: Task[Any, Any], log: str, requeue: bool) -> str:
    """Reject the first run."""
    note(log, "reject")
    if len(Path(log).read_text().splitlines()) == 1 or not requeue:
        raise Reject("not now", requeue=requeue)
    return "at last"


@shared_task(name="test.ignore")
def ignore() -> None:
    raise Ignore()


@shared_task(name="test.cancelled_error")
def cancelled_error() -> None:
    """Raise what is no Exception."""
    raise asyncio.CancelledError


@shared_task(name="test.two_arguments")
def two_arguments() -> None:
    raise TwoArguments("x" * (2 << 20), 2)


class TwoArguments(Exception):
    """Cannot be made again from one argument."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(first, second)


@shared_task(name="test.replace_by_failing_chain", bind=True)
def replace_by_failing_chain(self: Task[Any, Any], x: int) -> Any:
    canvas: Any = fails.s("in the replacement") | add.si(x, 1)
    return self.replace(canvas)
