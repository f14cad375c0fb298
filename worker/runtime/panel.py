"""What a durable worker answers to remote commands, where Celery's answer would not be true.

Celery's commands look at the worker's memory. Of a durable app the ledger has what waits, and
remembers what was revoked.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from celery.utils.collections import LimitedSet
from celery.worker import control as stock
from celery.worker import state as worker_state
from kombu import Queue
from kombu.pidbox import Mailbox, Node
from kombu.utils.functional import maybe_list

from worker.errors import Conflict, LedgerError, LedgerUnavailable
from worker.jobs.job import Job
from worker.jobs.queues import checked_queue
from worker.jobs.states import State
from worker.ledger.bulk import OPEN, cancel_batch
from worker.ledger.database import Ledger
from worker.ledger.read import read_many
from worker.ledger.revoke import revoke
from worker.ledger.waiting import ended, next_due, scheduled, stamped
from worker.runtime.install import durability_of
from worker.runtime.routes import refuse_unserved

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that the event loop waits for the ledger, for one command.
LOOK_SECONDS: Final = 0.5
#: Revoked ids that `inspect revoked` names.
REVOKED_MOST: Final = 1000

_revoked = LimitedSet(maxlen=REVOKED_MOST)


class LedgerMailbox(Mailbox):  # type: ignore[misc] # kombu is not typed
    """Celery's mailbox, whose nodes answer some commands from the ledger."""

    def Node(
        self, hostname: Any = None, state: Any = None, channel: Any = None, handlers: Any = None
    ) -> Node:
        """A worker's place in the mailbox."""
        return super().Node(hostname, state, channel, handled(handlers or {}))


def handled(handlers: Mapping[str, Any]) -> ChainMap[str, Any]:
    """`handlers` with ours in the place of Celery's own; what a user put there stays."""
    return ChainMap(
        {name: ours for name, ours in _OURS.items() if handlers.get(name) is _STOCK[name]},
        dict(handlers) if not isinstance(handlers, dict) else handlers,
    )


def revoke_stamped(ledger: Ledger, headers: Mapping[str, Any], *, running: bool) -> int:
    """Cancel the jobs with one of these stamps that wait, and those that run if `running`; how
    many were cancelled.

    Raises:
        Unavailable: Postgres is away; what was cancelled until then stays so.
    """
    states = OPEN if running else (State.SCHEDULED, State.QUEUED)
    wanted = {name: maybe_list(values) for name, values in headers.items()}
    return sum(
        cancel_batch(ledger, ids, [state], "revoked")
        for state, ids in stamped(ledger, wanted, states)
    )


def revoke_running(request: Any, signum: int) -> None:
    """Cancel a job that this worker runs and whose code it cannot end; returns at once."""
    known = durability_of(request.app)

    def cancel() -> None:
        try:
            with suppress(Conflict):  # it has ended, perhaps by whoever broadcasts this
                revoke(known.ledger, request.id, "revoked", running=True)
            jobs = read_many(known.ledger, [request.id])
        except LedgerError as exc:
            logger.warning("Job %s may not be revoked in the ledger: %s", request.id, exc)
            return
        if any(job.state is State.CANCELLED for job in jobs):
            request.send_event("task-revoked", terminated=True, signum=signum, expired=False)

    threading.Thread(target=cancel, name="revoke", daemon=True).start()


def _scheduled(state: Any, **_: Any) -> list[dict[str, Any]]:
    """Jobs that wait for their time in this worker's queues, the next to run first."""
    found = _asked(lambda: next_due(_ledger(state), _queues(state)))
    return [_entry(job, state.hostname) for job in found]


def _query_task(state: Any, ids: Any, **_: Any) -> dict[str, Any]:
    """What this worker has of some ids, and what of them waits for its time in its queues."""
    wanted = [str(each) for each in maybe_list(ids) or []]
    found: dict[str, Any] = stock.query_task(state, wanted)
    unknown = [each for each in wanted if each not in found]
    if unknown:
        jobs = _asked(lambda: scheduled(_ledger(state), unknown, _queues(state)))
        found |= {job.id: ("scheduled", _info(job, state.hostname)) for job in jobs}
    return found


def _revoke(state: Any, task_id: Any, terminate: Any = False, signal: Any = None, **kw: Any) -> Any:
    """Revoke jobs by id."""
    ids = [str(each) for each in maybe_list(task_id) or []]
    answer = stock.revoke(state, ids, terminate=terminate, signal=signal, **kw)
    _flag(state, ids)
    return answer


def _terminate(state: Any, signal: Any, task_id: Any, **kw: Any) -> Any:
    """Terminate jobs by id."""
    return _revoke(state, task_id, terminate=True, signal=signal, **kw)


def _flag(state: Any, ids: list[str]) -> None:
    """Remember for `inspect revoked`, but let the ledger alone say what of it may not run: what it
    has cancelled may be replayed, and this worker's memory would refuse it for hours."""
    for each in ids:
        _revoked.add(each)
    try:
        for each in _asked(lambda: ended(_ledger(state), ids)):
            worker_state.revoked.discard(each)
    except LedgerError as exc:
        logger.warning("Revoked jobs are refused here until this worker ends: %s", exc)


def _revoke_by_stamped_headers(state: Any, headers: Any, terminate: Any = False, **kw: Any) -> Any:
    """Revoke jobs by their stamps, here and in the ledger."""
    if isinstance(headers, list):
        headers = dict(header.split("=", 1) for header in headers)

    def cancel() -> None:
        try:
            revoke_stamped(_ledger(state), headers, running=bool(terminate))
        except LedgerError as exc:
            logger.warning("Jobs with stamps are not revoked in the ledger: %s", exc)

    answer = stock.revoke_by_stamped_headers(state, headers, terminate=terminate, **kw)
    threading.Thread(target=cancel, name="revoke-stamped", daemon=True).start()
    return answer


def _add_consumer(state: Any, queue: Any, **options: Any) -> Any:
    """Consume from one more queue, unless no worker could: Celery makes the queue later, in the
    event loop, and what it raises there ends the worker."""
    try:
        checked_queue(queue)
        queues = state.app.amqp.queues
        refuse_unserved([queues[queue] if queue in queues else _described(queue, **options)])
        return stock.add_consumer(state, queue, **options)
    except LedgerError as exc:
        return stock.nok(str(exc))
    except Exception as exc:  # whatever these options make kombu and Celery raise
        return stock.nok(f"These options make no queue: {type(exc).__name__}: {exc}.")


def _described(
    queue: str,
    exchange: Any = None,
    exchange_type: Any = None,
    routing_key: Any = None,
    **options: Any,
) -> Queue:
    """The kombu queue that Celery would make of the command's options."""
    named = {"exchange": exchange or queue, "exchange_type": exchange_type or "direct"}
    return Queue.from_dict(queue, routing_key=routing_key or queue, **named, **options)


def _list_revoked(state: Any, **_: Any) -> list[str]:
    """Ids that were revoked while this worker ran."""
    return list(dict.fromkeys([*worker_state.revoked, *_revoked]))


_OURS: Final[dict[str, Callable[..., Any]]] = {
    "add_consumer": _add_consumer,
    "scheduled": _scheduled,
    "dump_schedule": _scheduled,
    "query_task": _query_task,
    "revoke": _revoke,
    "terminate": _terminate,
    "revoke_by_stamped_headers": _revoke_by_stamped_headers,
    "revoked": _list_revoked,
    "dump_revoked": _list_revoked,
}
_STOCK: Final = {name: stock.Panel.data[name] for name in _OURS}


def _ledger(state: Any) -> Ledger:
    return durability_of(state.app).ledger


def _queues(state: Any) -> list[str]:
    consumer = state.consumer.task_consumer
    return [queue.name for queue in consumer.queues] if consumer else []


def _asked(question: Callable[[], T]) -> T:
    """The ledger's answer, asked by a thread: the event loop, which runs the commands, must not
    stand still for longer than `LOOK_SECONDS`.

    Raises:
        LedgerUnavailable: there was none in time.
        LedgerError: the ledger says so.
    """
    answers: list[T | LedgerError] = []

    def ask() -> None:
        try:
            answers.append(question())
        except LedgerError as exc:
            answers.append(exc)

    thread = threading.Thread(target=ask, name="panel", daemon=True)
    thread.start()
    thread.join(LOOK_SECONDS)
    if not answers:
        raise LedgerUnavailable(f"Postgres has not answered in {LOOK_SECONDS:g} s; try again.")
    if isinstance(answers[0], LedgerError):
        raise answers[0]
    return answers[0]


def _entry(job: Job, hostname: str) -> dict[str, Any]:
    return {
        "eta": job.run_at.isoformat() if job.run_at else None,
        "priority": job.priority,
        "request": _info(job, hostname),
    }


def _info(job: Job, hostname: str) -> dict[str, Any]:
    """As `celery.worker.request.Request.info` has it, of a job that no worker has yet."""
    try:
        args, kwargs = json.loads(job.message.body)[:2]
    except (ValueError, TypeError, RecursionError):
        args, kwargs = None, None
    return {
        "id": job.id,
        "name": job.task,
        "args": args,
        "kwargs": kwargs,
        "type": job.task,
        "hostname": hostname,
        "time_start": None,
        "acknowledged": False,
        "delivery_info": {
            "exchange": "",
            "routing_key": job.queue,
            "priority": job.priority,
            "redelivered": None,
        },
        "worker_pid": None,
    }
