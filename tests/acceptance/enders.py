"""Tasks that end their worker, each in another way; the ordinary one's if they can reach it."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from billiard import current_process
from celery import shared_task, signals
from kombu.asynchronous import get_event_loop

from tests.acceptance.jobs import hold, note

__all__ = ["hold"]


class Broken(BaseException):
    """A fault that no handler of Celery's takes for its own."""


@shared_task(name="end.hub")
def in_the_hub(log: str) -> None:
    """Let the event loop raise, where it is in this process; a child kills its parent."""
    note(log, "end")
    if current_process().name != "MainProcess":
        os.kill(os.getppid(), signal.SIGSEGV)
    elif (hub := get_event_loop()) is not None:

        def broken() -> None:
            raise Broken("in the event loop")

        hub.call_soon(broken)
    time.sleep(60)


@shared_task(name="end.received")
def when_received(log: str) -> None:
    """Its handler of `task_received` ends the worker."""


@signals.task_received.connect
def _received(request: Any, **_: Any) -> None:
    if request.name == "end.received":
        note(request.args[0], "end")
        sys.exit(0)
