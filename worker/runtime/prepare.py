"""Let Celery's signals build and forget a worker's `Process`, and end it by its drain."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery, signals

from worker.errors import LedgerError
from worker.runtime.configuration import CONNECTION, WORKER
from worker.runtime.durable_app import use_the_ledger
from worker.runtime.ending import drain_at_the_end, give_up
from worker.runtime.errbacks import add_errback_task
from worker.runtime.install import Durability, durability_of
from worker.runtime.isolated import become_isolated, die_with_parent, handed_down
from worker.runtime.keepers import KeeperWatch
from worker.runtime.lateness import in_worker
from worker.runtime.process import Process
from worker.runtime.routes import refuse_unserved
from worker.runtime.tempdir import forget_temp_dir

logger = logging.getLogger(__name__)


def prepare(app: Celery) -> None:
    """Connect what this app's workers need to Celery's signals."""
    known = durability_of(app)
    known.is_worker = in_worker(app)  # as in a handler of `celeryd_init`, which ours would be
    add_errback_task(app)

    def on_start(instance: Any, conf: Any, **_: Any) -> None:
        if instance.app is app:
            known.is_worker = True
            _verify(known)
            conf.update(CONNECTION)

    def on_worker_init(sender: Any, **_: Any) -> None:
        if sender.app is app:
            _verify(known)
            _decide(sender)
            known.settings = handed_down(known.settings)
            if known.settings.isolated:
                become_isolated(sender, known.settings)
            known.process = Process(app, sender)
            _serve_health(known.process)

    def on_beat_init(sender: Any, **_: Any) -> None:
        if sender.app is app:
            app.conf.update(CONNECTION)

    def on_set_up(instance: Any, **_: Any) -> None:
        if instance.app is not app:
            return
        known.say()
        _refuse_unserved(app)
        server = known.process.health.server if known.process is not None else None
        if server is not None:
            logger.info("Health is served at port %d.", server.port)

    def on_ready(sender: Any, **_: Any) -> None:
        process = known.process
        if sender.app is app and process is not None and not known.settings.isolated:
            KeeperWatch(known.ledger, is_over=lambda: process.drain.is_over).start()

    def on_child(**_: Any) -> None:
        process = known.process
        if process is not None and process.pid != os.getpid():
            die_with_parent()
            forget_temp_dir()
            known.process = None

    signals.celeryd_init.connect(on_start, weak=False)
    signals.worker_init.connect(on_worker_init, weak=False)
    signals.beat_init.connect(on_beat_init, weak=False)
    signals.celeryd_after_setup.connect(on_set_up, weak=False)  # the log is set up by then
    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_process_init.connect(on_child, weak=False)
    drain_at_the_end(app)


def _refuse_unserved(app: Celery) -> None:
    """End a worker that is to consume what it cannot serve, before it declares anything."""
    try:
        refuse_unserved(app.amqp.queues.consume_from.values())
    except LedgerError as exc:
        give_up(exc)


def _verify(known: Durability) -> None:
    """Refuse to start a worker whose app's configuration, which is whole by now, is not durable."""
    try:
        known.verify()
    except LedgerError as exc:
        give_up(exc)


def _decide(controller: Any) -> None:
    """Decide what no configuration, and no argument of the worker, decides in a durable app.

    This is after Celery has read both, and before it makes the consumer.
    """
    controller.app.conf.update(WORKER | CONNECTION)
    controller.consumer_cls = WORKER["worker_consumer"]
    controller.prefetch_multiplier = WORKER["worker_prefetch_multiplier"]
    for task in controller.app.tasks.values():
        use_the_ledger(task, controller.app)


def _serve_health(process: Process) -> None:
    """Answer probes from here on, before Celery connects to anything."""
    try:
        process.health.serve()
    except LedgerError as exc:
        give_up(exc)
