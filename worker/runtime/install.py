"""`durable(app)`: make a Celery app durable, in its workers and its producers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from celery import Celery

from worker.broker.address import Address, read, with_options
from worker.broker.transport import ADDRESS, PATIENT, ROUTING, WRITER, Channel
from worker.errors import ConfigurationError
from worker.jobs.job import Fence, Finish
from worker.ledger.database import Ledger
from worker.runtime.publish import Publisher
from worker.runtime.routes import routing_of
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.runtime.process import Process

#: Connections to Postgres that one producer process opens at the most.
PRODUCER_CONNECTIONS = 10
#: Our kombu transports: for an address of Redis itself, and for one of Sentinels.
TRANSPORT = "worker.broker.transport:Transport"
SENTINEL_TRANSPORT = "worker.broker.transport:SentinelTransport"


def durability_of(app: Celery) -> Durability:
    """What a durable app knows of the ledger."""
    known: Durability = app.ledger  # type: ignore[attr-defined] # `durable` has set it
    return known


class Durability:
    """What a durable app knows of the ledger; `app.ledger`.

    Attributes:
        settings: the configuration.
        process: the worker's machinery, in a worker's main process only.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.process: Process | None = None

    @functools.cached_property
    def ledger(self) -> Ledger:
        """This process's door to the ledger, opened when first used."""
        return Ledger(
            self.settings.database_url.get_secret_value(),
            name=f"celery-ledger {self.app.main or 'app'}",
            connect_timeout=self.settings.connect_timeout_seconds,
            connections=PRODUCER_CONNECTIONS,
        )

    def close(self) -> None:
        """Close the idle connections to Postgres, if there are any; another use opens new ones."""
        if "ledger" in vars(self):  # else it was never used
            self.ledger.close()

    def fence_of(self, job_id: str) -> Fence | None:
        """The fence under which this worker holds the job, if it is one and does."""
        return self.process.claims.fence_of(job_id) if self.process else None

    def finish(self, end: Finish) -> None:
        """Hand an attempt's end to the worker's writer."""
        if self.process is None:
            raise RuntimeError("only a worker's main process finishes jobs")
        self.process.finish(end)

    def publish(self, job: Any) -> Any:
        """The transport's writer: see `Publisher`."""
        return self._publisher(job)

    @functools.cached_property
    def _publisher(self) -> Publisher:
        return Publisher(self.ledger, self.settings.payload_max_bytes)


class _Writer:
    """The transport's writer, as it stands in the transport's options."""

    def __init__(self, durability: Durability) -> None:
        self._durability = durability

    def __call__(self, job: Any) -> Any:
        return self._durability.publish(job)

    def __json__(self) -> str:
        # `inspect stats` and Flower read a worker's transport options as JSON.
        return "ledger"


def durable(app: Celery, settings: Settings | None = None) -> Celery:
    """Make `app` durable and return it; call it once, where the app is made.

    It needs `DATABASE_URL`. Redis is `REDIS_URL`, or else the app's own `broker_url` with its
    `broker_use_ssl` and its options for Sentinel. Nothing is opened before the first use.

    Raises:
        InvalidSettings: the environment lacks or misstates something.
        ConfigurationError: the app uses something that cannot be durable.
    """
    if settings is None:
        settings = Settings.load(otherwise={"redis_url": lambda: _address_of(app)})
    _refuse_unsupported(app)
    address = read(settings.redis_url.get_secret_value())
    app.ledger = Durability(app, settings)  # type: ignore[attr-defined] # the one place
    app.conf.update(
        broker_url=address.url,
        broker_use_ssl=address.tls or False,
        broker_transport=SENTINEL_TRANSPORT if address.sentinels else TRANSPORT,
        broker_transport_options=_transport_options(app, address),
        # Without end, whatever the app says: a worker that ends in an outage loses its results.
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        result_backend="worker.runtime.results:LedgerBackend",
        worker_consumer="worker.runtime.consumer:LedgerConsumer",
        # One slot, one claim: prefetching is the inventory's business.
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    app.control_cls = "worker.runtime.control:LedgerControl"
    _let_producers_do_without_redis(app)
    _close_the_ledger_too(app)
    from worker.runtime.prepare import prepare

    prepare(app)
    return app


def _address_of(app: Celery) -> str | None:
    """What `REDIS_URL` would say of the app's own broker, if it names one."""
    own = app.conf.get("broker_url")
    if not own:
        return None
    url = own if isinstance(own, str) else ";".join(own)
    return with_options(url, app.conf.broker_transport_options or {}, app.conf.broker_use_ssl)


def _transport_options(app: Celery, address: Address) -> dict[str, Any]:
    durability = durability_of(app)
    timeout = durability.settings.connect_timeout_seconds
    options = {
        # kombu would wait for ever on a Redis that does not answer.
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        **{k: v for k, v in address.options.items() if k in Channel.from_transport_options},
        **(app.conf.broker_transport_options or {}),
        WRITER: _Writer(durability),
        ROUTING: routing_of(app),
    }
    options.pop("sentinel_kwargs", None)  # the address has them; `inspect stats` shows these
    if address.sentinels:
        options |= {ADDRESS: address, "master_name": address.master_name}
    return options


def _let_producers_do_without_redis(app: Celery) -> None:
    """The row is what counts: a producer's connection bears that Redis is away."""
    connect = app.connection_for_write

    def connection_for_write(url: str | None = None, *args: Any, **kwargs: Any) -> Any:
        options = {**(kwargs.pop("transport_options", None) or {}), PATIENT: True}
        return connect(url, *args, transport_options=options, **kwargs)

    app.connection_for_write = connection_for_write  # type: ignore[method-assign] # for this app


def _close_the_ledger_too(app: Celery) -> None:
    """An app that is closed, or used as a context manager, leaves no connection to Postgres."""
    close_app = app.close

    def close() -> None:
        close_app()
        durability_of(app).close()

    app.close = close  # type: ignore[method-assign] # for this app


def _refuse_unsupported(app: Celery) -> None:
    conf = app.conf
    accepted = set(conf.accept_content or ())
    if accepted - {"json", "application/json"} or conf.task_serializer != "json":
        raise ConfigurationError(
            "A durable app speaks JSON only; set task_serializer = 'json' and"
            " accept_content = ['json']."
        )
    if conf.result_serializer != "json":
        raise ConfigurationError("A durable app speaks JSON only; set result_serializer = 'json'.")
    if (conf.broker_transport_options or {}).get("global_keyprefix"):
        raise ConfigurationError(
            "global_keyprefix is not supported; give this service a Redis database of its own."
        )
    if conf.worker_pool_start_method == "spawn":
        raise ConfigurationError("worker_pool_start_method must be 'fork', not 'spawn'.")
