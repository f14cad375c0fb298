"""Tasks that do not want to end, for the tests of the drain."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

from celery import shared_task

from tests.acceptance.jobs import note


@shared_task(name="test.deaf")
def deaf(log: str, signals: bool = True) -> None:
    """Hear neither a signal, where a task may set that, nor any exception. It never ends."""
    if signals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
    note(log, "start")
    while True:
        try:
            time.sleep(0.05)
        except BaseException:
            continue


@shared_task(name="test.grip")
def grip(log: str, gate: str) -> None:
    """Hold the GIL from when the file `gate` exists; for many minutes."""
    note(log, "start")
    while not Path(gate).exists():
        time.sleep(0.02)
    re.match(r"(a+)+$", "a" * 60 + "b")
