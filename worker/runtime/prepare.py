"""Let Celery's signals build, drain and forget a worker's `Process`."""

from __future__ import annotations

import atexit
import os
from typing import Any

from celery import Celery, signals

from worker.runtime.install import durability_of
from worker.runtime.isolation import become_isolated, die_with_parent
from worker.runtime.process import Process


def prepare(app: Celery) -> None:
    """Connect what this app's workers need to Celery's signals."""
    known = durability_of(app)

    def on_worker_init(sender: Any, **_: Any) -> None:
        if sender.app is app:
            if known.settings.isolated:
                become_isolated(sender)
            known.process = Process(app, sender)

    def on_child(**_: Any) -> None:
        process = known.process
        if process is not None and process.pid != os.getpid():
            die_with_parent()
            known.process = None

    def on_shutting_down(how: str = "Warm", **_: Any) -> None:
        process = known.process
        if process is not None and process.is_started:
            process.drain.begin(at_once=how.lower() != "warm")

    def on_shutdown(**_: Any) -> None:
        process = known.process
        if process is not None and process.is_started and process.pid == os.getpid():
            process.drain.begin(at_once=False)
            process.drain.join()

    def on_exit() -> None:
        # Celery's cold shutdown, and a crash, leave without a word: what this worker holds must not
        # wait for the lease's end. The drain's thread is a daemon, and would be cut off.
        process = known.process
        if process is not None and process.is_started and process.pid == os.getpid():
            process.drain.begin(at_once=not process.drain.is_draining)
            process.drain.join()

    atexit.register(on_exit)
    signals.worker_init.connect(on_worker_init, weak=False)
    signals.worker_process_init.connect(on_child, weak=False)
    signals.worker_shutting_down.connect(on_shutting_down, weak=False)
    signals.worker_shutdown.connect(on_shutdown, weak=False)
