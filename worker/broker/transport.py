"""The kombu transport that every task message passes: the row is written here, before the push."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import redis
from kombu.connection import resolve_aliases
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from worker.broker.address import Address
from worker.broker.doorbells import Doorbells
from worker.broker.faults import is_unable
from worker.broker.messages import carries_task, job_of, promised
from worker.broker.routing import Binding, Routing
from worker.broker.waiting import emptied, refuse_doorbells
from worker.errors import InvalidRequest, NotJSON, Unavailable
from worker.jobs.job import NewJob, Ring

logger = logging.getLogger(__name__)

#: The content type of every job.
JSON: Final = "application/json"

#: The key of `broker_transport_options` that holds the writer.
WRITER: Final = "ledger_writer"

#: The key that holds the `Routing` of the app's jobs.
ROUTING: Final = "ledger_routing"

#: The key that marks a producer's connection, which bears that Redis is away.
PATIENT: Final = "ledger_patient"

#: The key that holds an `Address` of Sentinels: kombu finds only the first of them in its URL.
ADDRESS: Final = "ledger_address"

#: Makes a job durable and says which doorbell to push: `None` for none now. Its `purge`, if it has
#: one, cancels what waits in a queue and says how many jobs that were; its `holds`, whether any do.
Writer = Callable[[NewJob], Ring | None]


class _Ping:
    """A Redis client to which a Redis that refuses a ping is away: one that cannot write its disk
    does, and kombu, which pings when it opens a channel, would take that for a fault for ever."""

    def ping(self, **kwargs: Any) -> Any:
        """Whether Redis answers.

        Raises:
            redis.exceptions.ConnectionError: it does not, or is unable to do anything.
        """
        try:
            return super().ping(**kwargs)  # type: ignore[misc] # a mixin before redis.Redis
        except redis.exceptions.ResponseError as exc:
            if not is_unable(exc):
                raise
            raise redis.exceptions.ConnectionError(f"Redis refuses a ping: {exc}") from exc


class _PatientPing(_Ping):
    """A Redis client whose first ping may fail."""

    def ping(self, **kwargs: Any) -> Any:
        """Whether Redis answers; never raises because it is away."""
        try:
            return super().ping(**kwargs)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as exc:
            logger.warning("Redis is away; jobs are durable, their doorbells late: %r", exc)
            return False


class QoS(kombu_redis.QoS):  # type: ignore[misc] # kombu is not typed
    """kombu's bookkeeping of unacknowledged messages: of a durable app those of its own consumers,
    which a `ConsumerStep` adds; its jobs are acknowledged when they are rows."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Restore nothing: the keeper's `Restorer` does it for kombu's keys too, by Redis's clock.

        kombu would when a worker connects, by the worker's clock, under a lock that a full Redis
        refuses; the worker would end of that.
        """
        if WRITER not in self.channel.connection.client.transport_options:
            super().restore_visible(*args, **kwargs)


class Channel(kombu_redis.Channel):  # type: ignore[misc] # kombu is not typed
    """kombu's Redis channel, except that a task message becomes a row and then a doorbell.

    No guarantee may rest on anything above this point: `send_task`, unregistered signatures, beat
    and canvas all bypass `Task.apply_async`, and the publish signals cannot veto.
    """

    QoS = QoS

    #: How many subscribers took the last broadcast of this channel.
    heard: int | None = None

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self._patient = bool(connection.client.transport_options.get(PATIENT))
        super().__init__(connection, **kwargs)

    def _get_client(self) -> Any:
        ping = _PatientPing if self._patient else _Ping
        return type("Client", (ping, super()._get_client()), {})

    def _receive_one(self, c: Any) -> Any:
        # kombu pings here too, now and then, to know that its subscription still stands.
        try:
            return super()._receive_one(c)
        except redis.exceptions.ResponseError as exc:
            if not is_unable(exc):
                raise
            return None

    def _size(self, queue: str) -> int:
        try:
            return int(super()._size(queue))
        except self.connection_errors:
            if not self._patient:
                raise
            return 0

    def _queue_bind(self, *args: Any) -> None:
        # A task's row says where it goes; a binding serves producers without the ledger.
        try:
            super()._queue_bind(*args)
        except redis.exceptions.ResponseError as exc:  # Redis is full, or a standby
            logger.warning("Redis refuses a binding, which jobs do without: %s", exc)
        except self.connection_errors:
            if not self._patient:
                raise

    def _put_fanout(
        self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any
    ) -> None:
        # As kombu does it, but for noting what Redis answers.
        if kwargs.get("_publish_batch") is not None:
            super()._put_fanout(exchange, message, routing_key, **kwargs)
            return
        payload = dumps(message)
        with self.conn_or_acquire() as client:
            topics = self._get_publish_topics(exchange, routing_key)
            self.heard = sum(int(client.publish(topic, payload)) for topic in topics)

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> Any:
        """Publish: a task message becomes exactly one row, and anything else goes as kombu has it.

        kombu would look up the queues in Redis, which forgets bindings and has those of others: a
        task message would become no row, or several.

        Raises:
            InvalidRequest: a task message that cannot be a job, or leads to no queue or to several.
        """
        options = self.connection.client.transport_options
        if WRITER not in options or not (promised(message) or carries_task(message)):
            return super().basic_publish(message, exchange, routing_key, **kwargs)
        self._inplace_augment_message(message, exchange, routing_key)
        kind = self.state.exchanges.get(exchange, {}).get("type")
        queue = _routing(options).queue_for(exchange, routing_key, kind)
        self._put(queue, message, **kwargs)

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", *args: Any, **kw: Any
    ) -> None:
        """Bind `queue`, and remember for which app: its jobs are routed by it."""
        options = self.connection.client.transport_options
        if WRITER in options and exchange:
            kind = self.state.exchanges.get(exchange, {}).get("type") or "direct"
            _routing(options).bind(Binding(queue, exchange, kind, routing_key or ""))
        super().queue_bind(queue, exchange, routing_key, *args, **kw)

    def queue_unbind(self, queue: str, exchange: str | None = None, *args: Any, **kw: Any) -> None:
        """Unbind `queue` from `exchange`."""
        options = self.connection.client.transport_options
        if WRITER in options:
            _routing(options).unbind(queue, exchange)
        super().queue_unbind(queue, exchange, *args, **kw)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kw: Any
    ) -> None:
        """Delete `queue`; with `if_empty` not while jobs wait in it, be it for their time."""
        options = self.connection.client.transport_options
        if if_empty and hasattr(writer := options.get(WRITER), "holds") and writer.holds(queue):
            return
        if WRITER in options:
            _routing(options).unbind(queue)
        super().queue_delete(queue, if_unused, if_empty, **kw)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        writer: Writer | None = self.connection.client.transport_options.get(WRITER)
        job = job_of(queue, message) if writer is not None else None
        if writer is not None and (own_id := promised(message)):
            _keep_promise(own_id, job)
        if writer is None or job is None:
            super()._put(queue, message, **kwargs)
            return
        if message.get("content-type") != JSON:
            raise NotJSON(
                f"Job {job.id} is written as {message.get('content-type')}, which no durable worker"
                " reads; send it as JSON."
            )
        ring = writer(job)
        if ring is not None:
            self._ring(ring)

    def _purge(self, queue: str) -> int:
        # Doorbells first: of a job that is enqueued between the two steps nothing is taken.
        writer = self.connection.client.transport_options.get(WRITER)
        if not hasattr(writer, "purge"):
            return int(super()._purge(queue))
        with self.conn_or_acquire() as client:
            foreign = emptied(client, queue)
        return foreign + int(writer.purge(queue))

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        if queue not in self.auto_delete_queues:  # those are replies and events, not jobs
            self._purge(queue)
        super()._delete(queue, *args, **kwargs)

    def _get(self, queue: str) -> Any:
        if self.connection.client.transport_options.get(WRITER) is not None:
            with self.conn_or_acquire() as client:
                refuse_doorbells(client, queue)
        return super()._get(queue)

    def _ring(self, ring: Ring) -> None:
        try:
            with self.conn_or_acquire() as client:
                Doorbells.over(client).ring([ring])
        except Unavailable as exc:
            # The job is committed: the enqueue has succeeded, and the keeper rings later.
            logger.warning("Job %s is durable, its doorbell is late: %s", ring.id, exc)


def _keep_promise(own_id: str, job: NewJob | None) -> None:
    """Refuse a message that would not become the job whose id its caller is given."""
    if job is None or job.id != own_id:
        became = f"job {job.id}" if job is not None else "no task message"
        raise InvalidRequest(
            f"Job {own_id} was changed on its way into {became}; a handler of before_task_publish"
            " must leave the headers 'id' and 'task' as they are."
        )


def _routing(options: dict[str, Any]) -> Routing:
    """The routing of the app whose transport options these are; it has one beside its writer."""
    routing: Routing = options.setdefault(ROUTING, Routing(tuple))
    return routing


class SentinelChannel(Channel, kombu_redis.SentinelChannel):  # type: ignore[misc] # ditto
    """kombu's Sentinel channel with what is ours, and with all the Sentinels of the address."""

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        address: Address | None = self.connection.client.transport_options.get(ADDRESS)
        if address is None:
            return super()._sentinel_managed_pool(asynchronous)
        options = self._connparams(asynchronous)
        del options["host"], options["port"]
        pool: Any = address.master(**options).connection_pool
        # kombu closes what it finds under these names.
        name = "_async_sentinel_manager" if asynchronous else "_sentinel_manager"
        setattr(self, name, pool.sentinel_manager)
        return pool


class Transport(kombu_redis.Transport):  # type: ignore[misc] # kombu is not typed
    """kombu's Redis transport with our channel; chosen by `broker_transport`."""

    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):  # type: ignore[misc] # kombu is not typed
    """kombu's Sentinel transport with our channel; ditto."""

    Channel = SentinelChannel


# Connections are shown, to people and to Flower, by what they speak to: Flower knows brokers by
# these names only.
resolve_aliases.update(
    {
        f"{__name__}:{Transport.__name__}": "redis",
        f"{__name__}:{SentinelTransport.__name__}": "sentinel",
    }
)
