"""The service's own Celery app: built-in tasks, and those of `WORKER_TASKS`."""

from __future__ import annotations

from importlib import import_module

from celery import Celery

from worker.errors import InvalidSettings
from worker.runtime.install import durability_of, durable
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
        enable_utc=True,
        worker_pool=settings.pool,
        worker_concurrency=settings.concurrency,
    )
    durable(app, settings)
    # Where it is looked for by who reads an app's configuration, as Flower does.
    broker = durability_of(app).broker
    app.conf.update(
        broker_url=broker.url,
        broker_use_ssl=broker.tls,
        broker_transport=broker.transport,
        broker_transport_options=dict(broker.options),
    )
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
