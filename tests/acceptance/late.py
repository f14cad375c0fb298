"""A user's app, made durable before its configuration is read, as a Django project has it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from celery import Celery, shared_task, signals

from worker.runtime import durable

SETTINGS = SimpleNamespace(
    CELERY_BROKER_URL="amqp://user:secret@127.0.0.1:9//",
    CELERY_RESULT_BACKEND="redis://:secret@127.0.0.1:9/1",
    CELERY_TASK_DEFAULT_QUEUE="late",
    CELERY_WORKER_CONSUMER="celery.worker.consumer:Consumer",
    CELERY_WORKER_PREFETCH_MULTIPLIER=8,
    CELERY_BROKER_CONNECTION_MAX_RETRIES=1,
    CELERY_TASK_SERIALIZER=os.environ.get("LATE_SERIALIZER", "json"),
)

#: The handler of Celery's that makes the app durable; not set: this module.
HANDLER = os.environ.get("LATE_HANDLER")

app: Any = Celery("late")
if HANDLER is None:
    durable(app)
else:
    getattr(signals, HANDLER).connect(lambda **_: durable(app) and None, weak=False)
app.config_from_object(SETTINGS, namespace="CELERY")
app.conf.worker_hijack_root_logger = False


@app.task  # type: ignore[untyped-decorator] # the app is any
def fence() -> list[Any]:
    """The attempt that this is, which only a claim makes."""
    from worker.runtime.execution import current

    execution = current()
    return [] if execution is None else [execution.fence.id, execution.fence.attempt]


@app.task  # type: ignore[untyped-decorator] # ditto
def make_another_app() -> None:
    """Make an app of another broker, which Celery then takes for this thread's current one."""
    Celery("another", broker="memory://", backend="cache+memory://")


@shared_task
def shared() -> str:
    """A task of whatever app is the current one."""
    return "here"


@app.task  # type: ignore[untyped-decorator] # ditto
def send_shared() -> str:
    """Send one; its id."""
    return str(shared.delay().id)
