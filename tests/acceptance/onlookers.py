"""A task that looks around in its process."""

from __future__ import annotations

import os
import threading

from celery import shared_task


@shared_task(name="test.threads")
def threads() -> tuple[int, list[str]]:
    """The process that runs this task, and the names of its threads."""
    return os.getpid(), [thread.name for thread in threading.enumerate()]
