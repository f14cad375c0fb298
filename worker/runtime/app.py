"""The service's own Celery app: built-in tasks, and those of `WORKER_TASKS`."""

from __future__ import annotations

from importlib import import_module

from celery import Celery

from worker.errors import InvalidSettings
from worker.runtime.install import durable
from worker.settings import Settings

BUILT_IN = ("worker.tasks.http", "worker.tasks.probe")


def create_app(settings: Settings) -> Celery:
    """A durable app with every task that this worker can run.

    Raises:
        InvalidSettings: a module of `WORKER_TASKS` cannot be imported.
    """
    app = Celery("worker")
    app.conf.update(
        task_default_queue=settings.queue,
        worker_hijack_root_logger=True,
        worker_send_task_events=True,
        broker_url=settings.redis_url.get_secret_value(),
        enable_utc=True,
        worker_pool=settings.pool,
        worker_concurrency=settings.concurrency,
    )
    durable(app, settings)
    app.set_default()
    for module in (*BUILT_IN, *settings.tasks):
        try:
            import_module(module)
        except Exception as exc:
            raise InvalidSettings(
                f"WORKER_TASKS names {module!r}, which cannot be imported:"
                f" {type(exc).__name__}: {exc}."
            ) from exc
    app.finalize()
    return app
