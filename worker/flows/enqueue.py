"""Enqueue jobs through the door: checked against what workers have published, then durable."""

from __future__ import annotations

import difflib
import json
import logging
import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final

from worker.broker.doorbells import Doorbells
from worker.errors import Conflict, InvalidRequest, UnknownQueue, UnknownTask
from worker.flows.ring import Ringing, ring
from worker.jobs.ids import checked_id
from worker.jobs.job import Enqueued, NewJob
from worker.jobs.signature import check_arguments
from worker.ledger import enqueue as ledger_enqueue
from worker.ledger.catalogue import Catalogue, read_catalogue
from worker.ledger.database import Ledger
from worker.ledger.together import GroupCommit

logger = logging.getLogger(__name__)

#: A job's args and kwargs.
Arguments = tuple[Sequence[Any], Mapping[str, Any]]
_decode = json.JSONDecoder().decode  # as `json.loads`, which looks for an encoding first

#: Seconds for which a job is accepted by what workers had published; it is refused only by what
#: they have published now.
CATALOGUE_SECONDS: Final = 5.0


class Door:
    """Where the threads of one producer enqueue. Those who come together with single jobs share a
    commit and a push of doorbells; a stream has its own.

    Args:
        ledger: where the jobs go.
        doorbells: where to ring.
    """

    def __init__(self, ledger: Ledger, doorbells: Doorbells) -> None:
        self._ledger, self._doorbells = ledger, doorbells
        self._together = GroupCommit(ledger, lambda rings: ring(doorbells, rings))
        self._known: tuple[float, Catalogue] | None = None

    def enqueue(self, job: NewJob, arguments: Arguments | None = None) -> Enqueued:
        """Check `job`, make it durable, and ring for it if it is due.

        Args:
            job: made for this call.
            arguments: what its message was made of, where that is at hand.

        Raises:
            UnknownTask, UnknownQueue, ArgumentsMismatch, MalformedId: it cannot be.
            Conflict: another job has its id or key.
            Unavailable: Postgres is away.
        """
        if not self._is_known(job, arguments):
            check(self._read_catalogue(), job)
        return self._together.enqueue(job)

    def enqueue_stream(self, jobs: Iterable[NewJob]) -> Generator[Enqueued | Conflict, None, None]:
        """Check `jobs` as they come, make them durable part by part, and ring; answers in order.

        Raises:
            InvalidRequest: a job cannot be. Like whatever else `jobs` raises, it comes after the
                answers to all jobs before it, unless one of these failed.
            Refused: Postgres refuses a part; those before it were answered.
            Unavailable: Postgres is away; what was not answered may be sent again.
        """
        raised: list[Exception] = []

        def checked() -> Iterator[NewJob]:
            try:
                yield from self._checked(jobs)
            except Exception as exc:
                raised.append(exc)

        ringing = Ringing(self._doorbells)
        parts = ledger_enqueue.enqueue_in_parts(self._ledger, checked(), ringing.add)
        with ringing, closing(parts):
            for part in parts:
                yield from part
        if raised:
            raise raised.pop()

    def _checked(self, jobs: Iterable[NewJob]) -> Iterator[NewJob]:
        """`jobs`, each with an id that can be and by a catalogue that was read lately."""
        catalogue: Catalogue | None = None
        until = -math.inf
        for job in jobs:
            checked_id(job.id)
            if catalogue is None or time.monotonic() >= until:
                catalogue, until = self._read_catalogue(), time.monotonic() + CATALOGUE_SECONDS
            try:
                check(catalogue, job)
            except InvalidRequest:
                catalogue = self._read_catalogue()
                check(catalogue, job)
            yield job

    def _is_known(self, job: NewJob, arguments: Arguments | None) -> bool:
        """Whether `job` fits what was read lately; one round trip then is enough for it."""
        known = self._known
        if known is not None and time.monotonic() - known[0] < CATALOGUE_SECONDS:
            with suppress(InvalidRequest):
                check(known[1], job, arguments)
                return True
        return False

    def _read_catalogue(self) -> Catalogue:
        began = time.monotonic()
        catalogue = catalogue_of(self._ledger)
        # An empty one accepts everything: the first worker ends that at once.
        self._known = (began, catalogue) if catalogue.tasks else None
        return catalogue


def enqueue(
    ledger: Ledger, doorbells: Doorbells, jobs: Sequence[NewJob], *, atomic: bool = False
) -> list[Enqueued | Conflict]:
    """Make checked `jobs` durable and ring for those that are due; answers in their order.

    Raises:
        MalformedId: an id that the ledger cannot hold; nothing was enqueued.
        Conflict: only with `atomic`.
        Unavailable: Postgres is away; what was not answered may be sent again.
    """
    if atomic:
        told = ledger_enqueue.enqueue(ledger, jobs, atomic=True)
        ring(doorbells, ledger_enqueue.rings_of(told))
        return told
    for job in jobs:
        checked_id(job.id)
    ringing = Ringing(doorbells)
    parts = ledger_enqueue.enqueue_in_parts(ledger, jobs, ringing.add)
    with ringing, closing(parts):
        return [answer for part in parts for answer in part]


def catalogue_of(ledger: Ledger) -> Catalogue:
    """What can be enqueued; warns when no worker has published anything yet."""
    catalogue = read_catalogue(ledger)
    if not catalogue.tasks:
        logger.warning("No worker has published its tasks yet: accepting without a check.")
    return catalogue


def check(catalogue: Catalogue, job: NewJob, arguments: Arguments | None = None) -> None:
    """Make sure that some worker knows the job's task, its arguments fit, and its queue is served.

    An empty catalogue accepts everything.

    Args:
        catalogue: what workers have published.
        job: whether it can be.
        arguments: what its message was made of, where that is at hand.

    Raises:
        UnknownTask, UnknownQueue, ArgumentsMismatch: it is not so.
    """
    if not catalogue.tasks:
        return
    if job.task not in catalogue.tasks:
        raise UnknownTask(
            f"No worker knows a task {job.task!r}{_hint(job.task, catalogue.tasks)};"
            " set WORKER_TASKS to its module and start a worker."
        )
    if job.queue not in catalogue.queues:
        raise UnknownQueue(
            f"No worker has ever consumed a queue {job.queue!r}"
            f"{_hint(job.queue, catalogue.queues)};"
            f" start one with `worker run --queues {job.queue}`."
        )
    if arguments is None:
        args, kwargs, _ = _decode(job.message.body.decode())
        arguments = args, kwargs
    check_arguments(job.task, catalogue.tasks[job.task], *arguments)


def _hint(name: str, known: object) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)  # type: ignore[call-overload] # names
    return f", the nearest is {near[0]!r}" if near else ""
