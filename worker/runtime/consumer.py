"""Celery's consumer, fed by claims instead of broker messages."""

from __future__ import annotations

import functools
import json
import logging
import pickle
import warnings
from contextlib import suppress
from typing import Any

from celery.exceptions import CPendingDeprecationWarning, InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.worker.consumer import consumer as celery_consumer
from celery.worker.request import Request
from celery.worker.state import task_reserved
from kombu import Message
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import prepare_accept_content, registry
from kombu.utils.json import loads

from worker.errors import ConfigurationError
from worker.jobs.job import Claim
from worker.runtime.announcer import Announcer
from worker.runtime.ending import give_up
from worker.runtime.handlers import await_commit, settle
from worker.runtime.outcome import describe
from worker.runtime.pipes import Pipes
from worker.runtime.process import Process
from worker.runtime.rates import Rates
from worker.runtime.request import ClaimedRequest, received
from worker.runtime.routes import refuse_unserved, routing_of
from worker.runtime.strategies import refuse_strategies

logger = logging.getLogger(__name__)

#: What nearly every body is.
JSON = "application/json"
#: Longest wait, in seconds, before a job whose task no worker here knows is tried again.
UNKNOWN_TASK_CAP = 60.0
#: Longest time, in seconds, that a job keeps its slot to wait for its task's rate limit.
PATIENCE = 0.25
#: Seconds between tries to reach Redis while it is away.
RECONNECT_PAUSE = 2.0


class ClaimConsumer:
    """Stands where kombu's consumer stands in Celery's worker: names the queues to fetch from."""

    def __init__(self, consumer: LedgerConsumer, queues: list[Any]) -> None:
        self._consumer = consumer
        self._queues = {queue.name: queue for queue in queues}
        self.on_message: Any = None

    @property
    def queues(self) -> list[Any]:
        """The queues fetched from, as kombu queues."""
        return list(self._queues.values())

    def consume(self, no_ack: bool | None = None) -> None:
        """Fetch from now on; the threads are started the first time."""
        process = self._consumer.process
        process.queues = lambda: list(self._queues)
        process.receive = self._consumer.receive
        try:
            process.start(self._consumer.hub)
        except ConfigurationError as exc:
            give_up(exc)
        self._consumer.announcer.start()
        process.resume()

    def cancel(self) -> None:
        """Fetch nothing more."""
        if self._consumer.process.is_started:
            self._consumer.process.fetcher.pause()

    def qos(self, **_: Any) -> None:
        """Nothing: the free slots say how much is fetched."""

    def close(self) -> None:
        """Fetch nothing more."""
        self.cancel()

    def consuming_from(self, queue: Any) -> bool:
        """Whether `queue`, a name or a kombu queue, is fetched from."""
        return getattr(queue, "name", queue) in self._queues

    def add_queue(self, queue: Any) -> None:
        """Fetch from `queue` too.

        Raises:
            ConfigurationError: it is bound to an exchange that no job can be addressed by.
        """
        try:
            refuse_unserved([queue])
        except ConfigurationError:
            self._consumer.app.amqp.queues.deselect([queue.name])
            raise
        self._queues[queue.name] = queue

    def cancel_by_queue(self, name: str) -> None:
        """Fetch from the queue `name` no more."""
        self._queues.pop(name, None)


class LedgerConsumer(celery_consumer.Consumer):  # type: ignore[misc] # Celery's class is not typed
    """Celery's consumer; what it receives are claims."""

    _pipes: Pipes | None = None
    _task_consumer: ClaimConsumer | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.announcer = Announcer(self.app, self.hostname, lambda: self.event_dispatcher)
        self._rates = Rates()
        self._routing = routing_of(self.app)
        self._requests: dict[str, type[ClaimedRequest]] = {}
        self._accept = prepare_accept_content(self.app.conf.accept_content)
        refuse_strategies(self.app)

    @property
    def task_consumer(self) -> ClaimConsumer | None:
        """What Celery's steps know as the consumer of task messages."""
        return self._task_consumer

    @task_consumer.setter
    def task_consumer(self, consumer: Any) -> None:
        # Celery's `Tasks` step makes a kombu consumer, which declares the queues, and sets it here.
        # Other steps require that step by its class, so it cannot be replaced.
        self._task_consumer = (
            None if consumer is None else ClaimConsumer(self, list(consumer.queues))
        )

    @property
    def process(self) -> Process:
        """This worker's machinery."""
        process: Process = self.app.ledger.process
        return process

    def on_close(self) -> None:
        """Nothing: a lost broker connection takes no claim from us.

        Celery would forget here every job that is reserved and not active, and clear the pool's
        semaphore, because the broker will redeliver. Ours are claimed: nobody redelivers them.
        """

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Claim nothing while the event loop is down."""
        self.process.suspend()
        with warnings.catch_warnings():
            # Celery advises to cancel what runs: the broker would redeliver it. Ours does not.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)

    def connect(self) -> Any:
        """Celery's connection, that tells `inspect stats` whether it has TLS, not how: there may be
        a password in that."""
        conn = super().connect()
        told = conn.info
        conn.info = lambda: {**told(), "ssl": bool(conn.ssl)}
        return conn

    def ensure_connected(self, conn: Any) -> Any:
        """Wait for Redis, and soon find it back: Celery comes to pause for half a minute."""
        conn.ensure_connection = functools.partial(
            conn.ensure_connection,
            interval_start=RECONNECT_PAUSE,
            interval_step=0.0,
            interval_max=RECONNECT_PAUSE,
        )
        return super().ensure_connected(conn)

    def loop_args(self) -> Any:
        """Celery's arguments of its event loop, which registers the pool next."""
        if self._pipes is None:
            self._pipes = Pipes(self.pool)
        self._pipes.prepare(self.hub)
        return super().loop_args()

    def receive(self, claim: Claim) -> None:
        """Give a claimed job to the pool; what cannot be given is finished or given back."""
        task = self.app.tasks.get(claim.task)
        if task is None:
            self._unknown(claim)
            return
        try:
            wait = self._rates.wait(self.task_buckets[task.name], task.name)
            if wait > PATIENCE:
                self.process.postpone(claim.fence, "over the task's rate limit", wait)
                return
            request = self._request(claim, task)
            received(request, self)
            task_reserved(request)
            if wait:
                self.timer.call_after(wait, self.on_task_request, (request,))
            else:
                self.on_task_request(request)
        except (InvalidTaskError, ContentDisallowed, DecodeError) as exc:
            self.app.backend.mark_as_failure(claim.fence.id, exc)
        except Exception as exc:  # whatever stands in the row, it must not stop the worker
            logger.exception("Job %s cannot be read", claim.fence.id)
            self.app.backend.mark_as_failure(claim.fence.id, InvalidTaskError(describe(exc)))

    def _unknown(self, claim: Claim) -> None:
        wait = min(UNKNOWN_TASK_CAP, 0.5 * 2 ** min(claim.fence.attempt, 10))
        logger.error(
            "Job %s waits %.0f s: this worker knows no task %r. Set WORKER_TASKS to the module that"
            " has it, or let the workers that have it run.",
            claim.fence.id, wait, claim.task,
        )  # fmt: skip
        self.process.postpone(claim.fence, f"unknown task {claim.task!r}", wait)

    def _request(self, claim: Claim, task: Any) -> ClaimedRequest:
        message = self._message(claim)
        cls = self._requests.get(task.name)
        if cls is None:
            base = symbol_by_name(task.Request)
            bases = (ClaimedRequest,) if base is Request else (ClaimedRequest, base)
            cls = self._requests[task.name] = type("ClaimedRequest", bases, self._shared())
        # Read once: Celery would read it here, and again where it runs. What holds types of the
        # user's is read only there: they may not survive the way to a child.
        decoded = b"__type__" not in message.body
        request = cls(
            message,
            body=_payload(message) if decoded else message.body,
            decoded=decoded,
            app=self.app,
            hostname=self.hostname,
            eventer=self.announcer,
            task=task,
            connection_errors=self.connection_errors,
        )
        if not decoded:
            request.request_dict.update(args=(), kwargs={})  # where it runs, they are read again
        request.fence = claim.fence
        request.lost = claim.lost
        return request

    def _shared(self) -> dict[str, Any]:
        """What every request of this worker has, by the names in `ClaimedRequest`."""
        process = self.process
        return {
            "claims": process.claims,
            "clock": process.clock,
            "finish": staticmethod(process.finish),
            "lose": staticmethod(process.lose),
            "settle": staticmethod(functools.partial(settle, process)),
            "tidings": process.tidings,
            "await_commit": staticmethod(functools.partial(await_commit, process)),
        }

    def _message(self, claim: Claim) -> Message:
        envelope = _read(claim.message.envelope)
        if "__type__" in claim.message.envelope:
            pickle.loads(pickle.dumps(envelope))  # noqa: S301 -- fails here, not in a child
        return Message(
            body=claim.message.body,
            delivery_tag=claim.fence.id,
            content_type=envelope["content-type"],
            content_encoding=envelope["content-encoding"],
            delivery_info=self._delivery_info(claim, envelope["properties"]),
            headers=envelope["headers"],
            properties=envelope["properties"],
            accept=self._accept,
        )

    def _delivery_info(self, claim: Claim, properties: dict[str, Any]) -> dict[str, Any]:
        """How the message was sent, and whether this is not the first time that it is delivered.

        A retry is sent the same way. Where this worker's app declares no such way to the job's
        queue, the queue itself is told.
        """
        sent = properties.get("delivery_info") or {}
        exchange, key = sent.get("exchange") or "", sent.get("routing_key") or ""
        if not exchange or not self._routing.leads_to(claim.queue, exchange, key):
            exchange, key = "", claim.queue
        return {"exchange": exchange, "routing_key": key, "redelivered": claim.redelivered}


def _read(text: str) -> Any:
    """JSON, as kombu reads it; which looks at every object for a type of its own."""
    return loads(text) if "__type__" in text else json.loads(text)


def _is_kombus_json() -> bool:
    """Whether JSON is read by kombu, and not by a codec that the user has put in its place."""
    return registry._decoders.get(JSON) is loads


def _payload(message: Message) -> Any:
    """The arguments, and what else stands in the body.

    Raises:
        ContentDisallowed, DecodeError: it cannot be read.
    """
    if message.content_type == JSON and message.content_encoding == "utf-8" and _is_kombus_json():
        with suppress(ValueError):
            return _read(message.body.decode())
    return message.payload
