"""The parity app of a worker process: stock or durable, as its environment says."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals

from tests.parity.tasks import define, scratch
from worker.runtime import durable

CONFIGURATION: dict[str, Any] = {
    "task_send_sent_event": True,
    "worker_send_task_events": True,
    "broker_connection_retry_on_startup": True,
    "worker_hijack_root_logger": False,
    "task_create_missing_queues": True,
    "result_extended": False,
}


def make(side: str, broker: str, results: str) -> Celery:
    """An app on its own broker; `durable` or `stock`, with results in Redis."""
    app = Celery("parity", broker=broker, backend=results, set_as_current=False)
    app.conf.update(CONFIGURATION)
    if side == "durable":
        durable(app)
    return app


def _note_signals(app: Celery) -> None:
    note = scratch()

    def noted(name: str, task_id: str, *more: object) -> None:
        note.rpush(f"signals:{task_id}", " ".join([name, *map(str, more)]))

    def state_of(task_id: str) -> str:
        return str(app.AsyncResult(task_id).state)

    def on_received(request: Any, **_: Any) -> None:
        noted("received", request.id)

    def on_prerun(task_id: str, **_: Any) -> None:
        noted("prerun", task_id)

    def on_postrun(task_id: str, state: str, **_: Any) -> None:
        noted("postrun", task_id, state, state_of(task_id))

    def on_success(sender: Any, **_: Any) -> None:
        noted("success", sender.request.id, state_of(sender.request.id))

    def on_failure(task_id: str, exception: BaseException, **_: Any) -> None:
        noted("failure", task_id, type(exception).__name__, state_of(task_id))

    def on_retry(request: Any, reason: Any, **_: Any) -> None:
        noted("retry", request.id, state_of(request.id))

    def on_revoked(request: Any, terminated: bool, expired: bool, **_: Any) -> None:
        noted("revoked", request.id, f"terminated={terminated}", f"expired={expired}")

    def on_unknown(name: str, id: str, **_: Any) -> None:
        noted("unknown", id, name)

    for signal, handler in (
        (signals.task_received, on_received),
        (signals.task_prerun, on_prerun),
        (signals.task_postrun, on_postrun),
        (signals.task_success, on_success),
        (signals.task_failure, on_failure),
        (signals.task_retry, on_retry),
        (signals.task_revoked, on_revoked),
        (signals.task_unknown, on_unknown),
    ):
        signal.connect(handler, weak=False)


if "PARITY_SIDE" in os.environ:
    app = make(os.environ["PARITY_SIDE"], os.environ["PARITY_BROKER"], os.environ["PARITY_RESULTS"])
    define(app)
    _note_signals(app)
