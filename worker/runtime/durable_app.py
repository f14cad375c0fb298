"""The class of a durable app: what makes it durable stands where no configuration can replace it.

`app.conf` stays the user's own: whatever it says of a broker, a result backend or a consumer, and
however late, these methods do not ask it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, ClassVar, cast

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.task import Task
from celery.utils.imports import symbol_by_name
from kombu.utils.objects import cached_property

from worker.broker.messages import PROMISED
from worker.broker.transport import PATIENT
from worker.errors import ConfigurationError
from worker.runtime.configuration import is_json
from worker.runtime.install import Durability, durable
from worker.settings import Settings

BACKEND = "worker.runtime.results:LedgerBackend"
MIRROR = "worker.runtime.mirror:backend_class"
CONTROL = "worker.runtime.control:LedgerControl"


class DurableApp:
    """Stands before an app's own class: see `made_durable`."""

    #: The app's class as its user knows it.
    theirs: ClassVar[type[Celery]]
    ledger: Durability

    def _connection(self, url: Any, *args: Any, **options: Any) -> Any:
        # Celery's points of connection all lead here: producers, workers, beat, events, control.
        app = cast(Any, self)
        if not self.ledger.is_own(url):  # the user's own connection, to something else
            (options.get("transport_options") or {}).pop(PATIENT, None)
            return super()._connection(url, *args, **options)  # type: ignore[misc] # Celery's
        broker = self.ledger.broker
        chosen = options.get("transport_options") or {}
        return app.amqp.Connection(
            broker.url,
            transport=broker.transport,
            ssl=broker.tls,
            heartbeat=options.get("heartbeat"),
            login_method=options.get("login_method") or app.conf.broker_login_method,
            failover_strategy=options.get("failover_strategy") or app.conf.broker_failover_strategy,
            transport_options={**broker.options, **chosen},
            connect_timeout=app.either("broker_connection_timeout", options.get("connect_timeout")),
        )

    def connection_for_write(self, url: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Celery's connection for producers, which bears that Redis is away: the row counts."""
        options = {**(kwargs.pop("transport_options", None) or {}), PATIENT: True}
        theirs: Any = super()
        return theirs.connection_for_write(url, *args, transport_options=options, **kwargs)

    def _get_backend(self) -> Any:
        self.ledger.verify()
        return symbol_by_name(MIRROR)(self)(app=self)

    @property
    def backend(self) -> Any:
        """The ledger, as Celery's result backend."""
        theirs: Any = super()
        backend = theirs.backend
        if not isinstance(backend, symbol_by_name(BACKEND)):  # somebody has set another one
            backend = cast(Any, self)._backend = self._get_backend()
        return backend

    @cached_property  # type: ignore[untyped-decorator] # kombu is not typed
    def amqp(self) -> Any:
        """Celery's, which sends tasks through the ledger only."""
        return derived(LedgerAMQP, cast(Any, self).amqp_cls)(app=self)

    @cached_property  # type: ignore[untyped-decorator] # ditto
    def control(self) -> Any:
        """Celery's, with a revoke that nobody forgets."""
        return derived(symbol_by_name(CONTROL), cast(Any, self).control_cls)(app=self)

    def send_task(self, *args: Any, **options: Any) -> Any:
        """Celery's `send_task`, of a task that has no result backend of its own."""
        if (task := options.get("task_type")) is not None:
            use_the_ledger(task, cast(Any, self))
        theirs: Any = super()
        return theirs.send_task(*args, **options)

    def close(self) -> None:
        """Close the app, and its connections to Postgres."""
        theirs: Any = super()
        theirs.close()
        if (amqp := vars(self).get("amqp")) is not None:
            amqp._producer_pool = None  # it would keep what kombu's pools have closed
        self.ledger.close()

    def __reduce__(self) -> Any:
        rebuild, (_, *rest) = cast(Any, super().__reduce__())
        return _rebuilt, (rebuild, self.theirs, tuple(rest), self.ledger.given)


class LedgerAMQP(AMQP):  # type: ignore[misc] # Celery's class is not typed
    """Celery's way of sending tasks, which refuses what would not become a row, or not run."""

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()
        ledger: Durability = self.app.ledger

        @functools.wraps(send)
        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if not ledger.owns(producer.connection):
                raise ConfigurationError(
                    f"Task {name} was given a connection or a producer of another broker, where it"
                    " would not be durable; leave out connection= and producer=."
                )
            own_id, said = message.headers.get("id"), options.get("headers") or {}
            if own_id and said.get("id", own_id) != own_id:
                raise ConfigurationError(
                    f"Task {name} was sent with a header 'id', which would replace the id that the"
                    " caller is given; leave it out of headers=, or use task_id=."
                )
            serializer = options.get("serializer")
            if serializer is not None and not is_json(serializer):
                raise ConfigurationError(
                    f"Task {name} was sent with serializer = {serializer!r}, but a durable app"
                    " speaks JSON only; leave out serializer=, here and in the task's own options."
                )
            if not own_id and isinstance(message.body, dict):  # the old protocol
                own_id = message.body.get("id")
            # The transport holds it against what handlers of before_task_publish have changed.
            message.properties[PROMISED] = own_id or f"of task {name}"
            return send(producer, name, message, **options)

        return send_task_message


def made_durable(app: Celery, ledger: Durability) -> None:
    """Put what is durable before the app's own class, and forget what was made without it."""
    known: Any = app
    known.__class__ = durable_class(cast(Any, type(app)))
    known.ledger = ledger
    known._pool = None
    known._backend_cache = None
    known._local = type(known._local)()  # a backend for each thread stands there
    # What was made already keeps its state, such as queues that were added by hand.
    if (amqp := vars(known).get("amqp")) is not None:
        amqp.__class__ = derived(LedgerAMQP, type(amqp))
        amqp._producer_pool = None
        vars(amqp).pop("send_task_message", None)
    if (control := vars(known).get("control")) is not None:
        control.__class__ = derived(symbol_by_name(CONTROL), type(control))


@functools.cache
def durable_class(theirs: type[Celery]) -> type[Celery]:
    """A class of that name, durable."""
    own = {"theirs": theirs, "__module__": theirs.__module__, "__doc__": theirs.__doc__}
    return types.new_class(
        theirs.__name__, (DurableApp, theirs), {}, lambda space: space.update(own)
    )


def derived(ours: type, theirs: Any) -> type:
    """The user's class with ours before it, or ours where it is Celery's own."""
    cls: type = symbol_by_name(theirs)
    if issubclass(cls, ours):
        return cls
    return ours if issubclass(ours, cls) else type(cls.__name__, (ours, cls), {})


def use_the_ledger(task: object, app: Celery) -> None:
    """Take from a task that `app` sends or runs the result backend of its own, or of another app
    that has made it, which would hide its end from the ledger."""
    if isinstance(task, Task):
        cls: Any = type(task)
        if not isinstance(cls.backend, property):
            cls.backend = Task.backend
        cast(Any, task)._backend = None
        if isinstance(vars(cls).get("app"), Celery):  # its maker's, which `bind` leaves there
            cls.app = app


def _rebuilt(
    rebuild: Callable[..., Celery],
    theirs: type[Celery],
    rest: tuple[Any, ...],
    settings: Settings | None,
) -> Celery:
    """A durable app out of its pickle."""
    return durable(rebuild(theirs, *rest), settings)
