"""A task that ends each worker that it is handed to."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from celery import shared_task, signals

from tests.acceptance.jobs import hold

__all__ = ["hold"]


@shared_task(name="end.received")
def when_received(log: str) -> None:
    """Its handler of `task_received` ends the worker."""


@shared_task(name="end.parent")
def end_parent() -> None:
    """Send the process that started this one what an operator would."""
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)


@signals.task_received.connect
def _received(request: Any, **_: Any) -> None:
    if request.name == "end.received":
        sys.exit(0)
