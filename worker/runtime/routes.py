"""What a Celery app declares of queues and exchanges, as the transport's routing reads it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from celery import Celery

from worker.broker.routing import SERVED, Binding, Routing
from worker.errors import ConfigurationError


def routing_of(app: Celery) -> Routing:
    """The addresses of the app's jobs, by the queues that it declares when it is asked."""
    return Routing(lambda: bindings_of(app.amqp.queues.values()))


def bindings_of(queues: Iterable[Any]) -> Iterator[Binding]:
    """Every binding of kombu queues: each queue's own, and those of its `bindings`."""
    for queue in list(queues):
        for bound in (queue, *queue.bindings):
            exchange = bound.exchange
            name = getattr(exchange, "name", exchange) or ""
            kind = getattr(exchange, "type", None) or "direct"
            yield Binding(queue.name, str(name), str(kind), str(bound.routing_key or ""))


def refuse_unserved(queues: Collection[Any]) -> None:
    """Make sure that a worker can serve the queues that it is to consume.

    Raises:
        ConfigurationError: one is bound to an exchange that no job can be addressed by.
    """
    names = {queue.name: queue.alias or queue.name for queue in queues}  # a Broadcast's is random
    for binding in bindings_of(queues):
        if binding.kind not in SERVED:
            raise ConfigurationError(
                f"Queue {names[binding.queue]!r} is bound to the {binding.kind} exchange"
                f" {binding.exchange!r}, and a durable worker serves direct and topic exchanges"
                " only: one id cannot be the job of several workers. Take the queue out of"
                " task_queues (or name the others by -Q), and call each worker by a remote control"
                " command instead of a broadcast."
            )
