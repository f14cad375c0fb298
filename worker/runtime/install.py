"""`durable(app)`: make a Celery app durable, in its workers and its producers."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import Celery

from worker.broker.address import read
from worker.broker.doorbells import Doorbells
from worker.broker.transport import ADDRESS, ROUTING, WRITER, Channel
from worker.errors import ConfigurationError
from worker.jobs.job import Fence, Finish
from worker.ledger.database import Ledger
from worker.runtime.configuration import (
    overridden,
    refuse_early,
    refuse_unsupported,
    settings_of,
)
from worker.runtime.handlers import EarlyEnds
from worker.runtime.publish import Publisher
from worker.runtime.purge import holds, purge
from worker.runtime.routes import routing_of
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.runtime.process import Process

logger = logging.getLogger(__name__)

#: Connections to Postgres that one producer process opens at the most.
PRODUCER_CONNECTIONS = 10
#: Our kombu transports: for an address of Redis itself, and for one of Sentinels.
TRANSPORT = "worker.broker.transport:Transport"
SENTINEL_TRANSPORT = "worker.broker.transport:SentinelTransport"


def durability_of(app: Celery) -> Durability:
    """What a durable app knows of the ledger."""
    known: Durability = app.ledger  # type: ignore[attr-defined] # `durable` has set it
    return known


@dataclass(frozen=True, slots=True)
class Broker:
    """How a durable app reaches Redis, in kombu's words.

    Attributes:
        url: its address, without options.
        transport: ours.
        tls: kombu's `ssl`.
        options: kombu's `transport_options`.
    """

    url: str = field(repr=False)
    transport: str
    tls: dict[str, Any] | bool = field(repr=False)
    options: dict[str, Any] = field(repr=False)


class Durability:
    """What a durable app knows of the ledger; `app.ledger`.

    The app's configuration is read at the first use, because it may come after `durable()`.

    Attributes:
        given: the settings that `durable()` was given, if any.
        process: the worker's machinery, in a worker's main process only.
        is_worker: whether this process is a worker, whose log is set up later: see `say`.

    Raises:
        InvalidSettings: the environment lacks or misstates something.
    """

    def __init__(self, app: Celery, given: Settings | None) -> None:
        self.app = app
        self.given = given
        self.process: Process | None = None
        self.is_worker = False
        self._unused: list[str] | None = None
        self._is_redis_known = True
        self._known = given or Settings.load(otherwise={"redis_url": self._ask_later})

    def _ask_later(self) -> str:
        self._is_redis_known = False
        return "redis://"

    @functools.cached_property
    def settings(self) -> Settings:
        """The configuration.

        Raises:
            ConfigurationError: nothing says where Redis is.
        """
        return self._known if self._is_redis_known else settings_of(self.app, self._known)

    @functools.cached_property
    def broker(self) -> Broker:
        """How to reach Redis.

        Raises:
            ConfigurationError: the app's configuration cannot be durable.
        """
        self.verify()
        address = read(self.settings.redis_url.get_secret_value())
        timeout = self.settings.connect_timeout_seconds
        options = {
            # kombu would wait for ever on a Redis that does not answer.
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            **{k: v for k, v in address.options.items() if k in Channel.from_transport_options},
            **(self.app.conf.broker_transport_options or {}),
            WRITER: _Writer(self),
            ROUTING: routing_of(self.app),
        }
        options.pop("sentinel_kwargs", None)  # the address has them; `inspect stats` shows these
        if address.sentinels:
            options |= {ADDRESS: address, "master_name": address.master_name}
        transport = SENTINEL_TRANSPORT if address.sentinels else TRANSPORT
        return Broker(address.url, transport, address.tls or False, options)

    def is_own(self, url: object) -> bool:
        """Whether `url` is what Celery has for the app's own broker."""
        conf = self.app.conf
        return not url or url in (
            conf.broker_write_url,
            conf.broker_read_url,
            self.settings.redis_url.get_secret_value(),
            self.broker.url,
        )

    def owns(self, connection: Any) -> bool:
        """Whether what is published on this connection of kombu's becomes this app's rows."""
        writer = connection.transport_options.get(WRITER)
        return isinstance(writer, _Writer) and writer.durability is self

    def verify(self) -> None:
        """Prove that the app's configuration can be durable, as it is now.

        Raises:
            ConfigurationError: naming the setting.
        """
        refuse_unsupported(self.app)
        url = self.settings.redis_url.get_secret_value()
        if self._unused is None:
            self._unused = list(overridden(self.app, url, is_worker=self.is_worker))
        if not self.is_worker:
            self.say()

    def say(self) -> None:
        """Say in the log, once, which of the app's settings are not used."""
        if self._unused:
            logger.warning("The app is durable: its own %s is not used.", ", ".join(self._unused))
            self._unused = []

    @functools.cached_property
    def ledger(self) -> Ledger:
        """This process's door to the ledger, opened when first used."""
        return Ledger(
            self._known.database_url.get_secret_value(),
            name=f"celery-ledger {self.app.main or 'app'}",
            connect_timeout=self._known.connect_timeout_seconds,
            connections=PRODUCER_CONNECTIONS,
            schema=self.settings.ledger_schema,
            trusts_storage=self._known.trust_postgres_storage,
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
    def early_ends(self) -> EarlyEnds:
        """Commits an end before the user's handlers run."""
        url, timeout = self.settings.redis_url, self.settings.connect_timeout_seconds
        return EarlyEnds(lambda: self.ledger, lambda: Doorbells(url.get_secret_value(), timeout))

    @functools.cached_property
    def _publisher(self) -> Publisher:
        return Publisher(self.ledger, self._known.payload_max_bytes)


class _Writer:
    """The transport's writer, as it stands in the transport's options."""

    def __init__(self, durability: Durability) -> None:
        self.durability = durability

    def __call__(self, job: Any) -> Any:
        return self.durability.publish(job)

    def purge(self, queue: str) -> int:
        """Cancel what waits in `queue`; how many jobs."""
        return purge(self.durability.ledger, queue)

    def holds(self, queue: str) -> bool:
        """Whether jobs wait in `queue`."""
        return holds(self.durability.ledger, queue)

    def __json__(self) -> str:
        # `inspect stats` and Flower read a worker's transport options as JSON.
        return "ledger"


def durable(app: Celery[Any], settings: Settings | None = None) -> Celery[Any]:
    """Make `app` durable and return it; call it once, anywhere after the app is made, and before a
    worker of it is: in a handler of `celeryd_init` at the latest.

    It needs `DATABASE_URL`. Redis is `REDIS_URL`, or else the app's own `broker_url` with its
    `broker_use_ssl` and its options for Sentinel. Nothing is opened, and no configuration of the
    app is loaded, before the first use; none of it can undo this.

    Raises:
        InvalidSettings: the environment lacks or misstates something.
        ConfigurationError: the app uses something that cannot be durable.
    """
    from worker.runtime.sentences import tell_in_one_sentence

    tell_in_one_sentence()
    app = _itself(app)
    known = vars(app).get("ledger")
    if isinstance(known, Durability):
        if settings not in (None, known.given):
            raise ConfigurationError(f"{app!r} is durable already, with other settings.")
        return app
    refuse_early(app)
    from worker.runtime.durable_app import made_durable
    from worker.runtime.lateness import refuse_late
    from worker.runtime.prepare import prepare

    refuse_late(app)
    made_durable(app, Durability(app, settings))
    prepare(app)
    return app


def _itself(app: Any) -> Celery:
    """The app that a proxy, such as `celery.current_app`, stands for."""
    while hasattr(type(app), "_get_current_object"):
        app = app._get_current_object()
    if not isinstance(app, Celery):
        raise ConfigurationError(f"durable() takes a Celery app, not {type(app).__name__}.")
    return app
