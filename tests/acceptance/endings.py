"""Tasks that end in every way there is, and what follows them in a canvas."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task, signature
from celery.exceptions import Ignore, Reject

from tests.acceptance.jobs import note


@shared_task(name="ends.ok")
def ok() -> str:
    return "ok"


@shared_task(name="ends.retries", bind=True, max_retries=1)
def retries(self: Task[Any, Any]) -> None:
    raise self.retry(countdown=0, exc=ValueError("still no"))


@shared_task(name="ends.at_once")
def at_once(way: str) -> Any:
    """End as `way` says."""
    if way == "raises":
        raise ValueError("no")
    if way == "ignores":
        raise Ignore
    if way == "rejects":
        raise Reject("no", requeue=False)
    if way == "exits":
        sys.exit(3)
    if way == "dies":
        os._exit(9)
    if way == "exhausts the memory":
        raise MemoryError("no more")
    if way == "raises CancelledError":
        raise asyncio.CancelledError
    if way == "returns no JSON":
        return object()
    if way == "returns too much":
        return "x" * (2 << 20)
    if way == "takes too long":
        time.sleep(60)
    return way


@shared_task(name="ends.later")
def later(way: str, gate: str) -> None:
    """Go on until somebody ends it."""
    while not Path(gate).exists():
        time.sleep(0.02)


@shared_task(name="ends.replaced", bind=True)
def replaced(self: Task[Any, Any], first: dict[str, Any]) -> Any:
    """Be replaced by a chain that begins with `first`."""
    canvas: Any = signature(first, app=self.app) | ok.si()
    return self.replace(canvas)


@shared_task(name="ends.old_errback")
def old_errback(task_id: str, log: str, word: str) -> None:
    note(log, f"old:{word}")


@shared_task(name="ends.new_errback")
def new_errback(request: Any, exc: Any, traceback: Any, log: str, word: str) -> None:
    assert request.id and isinstance(exc, BaseException)
    note(log, f"new:{word}")
