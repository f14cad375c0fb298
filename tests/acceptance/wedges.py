"""A module of tasks that wedges its own worker, in the way that a file in a folder names."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from celery import signals


def _wedge_the_loop(process: Any) -> None:
    time.sleep(3600)


def _wedge_the_writer(process: Any) -> None:
    process.writer._write = lambda batch: threading.Event().wait()


def _end_the_writer(process: Any) -> None:
    def leave(batch: Any) -> None:
        raise SystemExit

    process.writer._write = leave


WEDGES = {"loop": _wedge_the_loop, "writer": _wedge_the_writer, "death": _end_the_writer}


@signals.worker_ready.connect
def wait_for_the_word(sender: Any, **_: Any) -> None:
    """Look for the file, on the event loop, until it is there."""
    folder = Path(os.environ["WEDGES"])
    process = sender.process

    def look() -> None:
        for name, wedge in WEDGES.items():
            if (folder / name).exists():
                (folder / name).unlink()
                wedge(process)

    sender.hub.call_repeatedly(0.1, look)
