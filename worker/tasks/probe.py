"""Tasks that do next to nothing: to see whether jobs run, take their time, fail and retry."""

from __future__ import annotations

import time
from typing import Any

from celery import Task, shared_task


class ProbeFailed(Exception):
    """What `probe.fail` was asked to raise."""


@shared_task(name="probe.echo")
def echo(value: Any = None) -> Any:
    """Return `value`."""
    return value


@shared_task(name="probe.sleep")
def sleep(seconds: float) -> float:
    """Sleep for `seconds`, and return them."""
    time.sleep(seconds)
    return seconds


@shared_task(name="probe.fail", bind=True, throws=(ProbeFailed,))
def fail(self: Task[..., Any], message: str = "failed, as asked", times: int | None = None) -> int:
    """Fail: for good, or the first `times` attempts only.

    Args:
        message: what the error says.
        times: `None` to fail for good; else how often to retry at once before succeeding.

    Returns:
        How many attempts failed.

    Raises:
        ProbeFailed: with `message`.
    """
    if times is None:
        raise ProbeFailed(message)
    if self.request.retries < times:
        raise self.retry(exc=ProbeFailed(message), countdown=0, max_retries=times)
    return self.request.retries
