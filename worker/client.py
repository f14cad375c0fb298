"""Python producers without a worker, and without Celery."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from worker.broker.doorbells import Doorbells
from worker.errors import Conflict, NotFound
from worker.flows import bulk
from worker.flows.enqueue import Door, catalogue_of, check, enqueue
from worker.flows.replay import replay
from worker.flows.ring import ring
from worker.flows.status import LATE_SECONDS, Report, report
from worker.jobs.job import Enqueued, Job, NewJob, Ring
from worker.jobs.message import new_job
from worker.jobs.queues import list_of
from worker.jobs.states import State
from worker.ledger import change, read
from worker.ledger.bulk import Selection, count
from worker.ledger.catalogue import Catalogue
from worker.ledger.database import Ledger
from worker.settings import Settings

__all__ = ["Client", "Selection"]

#: Seconds between the first looks of `wait`, doubling up to the last.
FIRST_LOOK, LAST_LOOK = 0.005, 0.25


class Client:
    """Enqueues jobs and answers where they are. Safe to use from several threads.

    Args:
        settings: default those of the environment.

    Example:
        with Client() as client:
            job_id = client.enqueue("probe.echo", ["hello"]).id
            print(client.wait(job_id, 10).state)
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.load()
        timeout = self.settings.connect_timeout_seconds
        self.ledger = Ledger(
            self.settings.database_url.get_secret_value(),
            name="celery-ledger client",
            connect_timeout=timeout,
            schema=self.settings.ledger_schema,
            trusts_storage=self.settings.trust_postgres_storage,
        )
        self.doorbells = Doorbells(self.settings.redis_url.get_secret_value(), timeout)
        self._door = Door(self.ledger, self.doorbells)

    def enqueue(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str | None = None,
        priority: int = 0,
        delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
        job_id: str | None = None,
    ) -> Enqueued:
        """Enqueue one job, durable when this returns; see `worker.jobs.message.new_job`.

        Raises:
            InvalidRequest, TooLarge: the job cannot be.
            Conflict: another job has this id or key.
            Unavailable: Postgres is away; with a `key` the call may simply be repeated.
        """
        job = new_job(
            task,
            args,
            kwargs,
            queue=queue or self.settings.queue,
            priority=priority,
            delay=delay,
            expires=expires,
            key=key,
            job_id=job_id,
            max_bytes=self.settings.payload_max_bytes,
        )
        return self._door.enqueue(job, (args, kwargs or {}))

    def enqueue_many(
        self, jobs: Sequence[NewJob], *, atomic: bool = False
    ) -> list[Enqueued | Conflict]:
        """Enqueue many jobs, durable when this returns; the answers stand in their order.

        Raises:
            InvalidRequest: a job does not fit the catalogue; nothing was enqueued.
            Conflict: only with `atomic`: another job has an id or key; nothing was enqueued.
            Unavailable: Postgres is away.
        """
        catalogue = self.catalogue()
        for job in jobs:
            check(catalogue, job)
        return enqueue(self.ledger, self.doorbells, jobs, atomic=atomic)

    def enqueue_stream(self, jobs: Iterable[NewJob]) -> Generator[Enqueued | Conflict, None, None]:
        """Enqueue any number of jobs as they come; yields their answers, in their order.

        Nothing happens until the answers are taken. An answer is yielded once its job is durable
        and rung for. Jobs are committed a thousand at a time: when so many are there, when the next
        one comes a second after the first of them, or at the end of `jobs`, which therefore must
        not wait for an answer. Up to three thousand are in memory, and 48 MiB of payloads with
        several times as much to write them. Who stops in the middle, or meets an error, may have
        enqueued those without an answer; `key` or `job_id` make a repeat safe. A fork must not go
        on with a stream of its parent.

        Example:
            jobs = (new_job("mail.send", [address]) for address in addresses)
            for answer in client.enqueue_stream(jobs):
                ...

        Raises:
            InvalidRequest: a job does not fit the catalogue; all before it are enqueued and were
                answered, unless one of them failed. The same goes for whatever `jobs` raises.
            Refused: Postgres refuses some value; none of its thousand was enqueued.
            Unavailable: Postgres is away; what was not answered may be sent again.
        """
        return self._door.enqueue_stream(jobs)

    def catalogue(self) -> Catalogue:
        """What workers have published."""
        return catalogue_of(self.ledger)

    def job(self, job_id: str) -> Job:
        """The job with its attempts.

        Raises:
            NotFound: no job has this id.
        """
        found = read.read(self.ledger, job_id)
        if found is None:
            raise NotFound(job_id)
        return found

    def jobs(self, **filters: Any) -> list[Job]:
        """Jobs, newest first; see `worker.ledger.read.read_list` for the filters."""
        return read.read_list(self.ledger, **filters)

    def summary(self, ids: Sequence[str]) -> list[Job]:
        """Those of `ids` that are known, with their attempts, in no order."""
        return read.read_many(self.ledger, ids)

    def counts(self, ids: Sequence[str] | None = None) -> dict[State, int]:
        """How many jobs are in each state, of `ids` or of all."""
        return read.counts(self.ledger, ids)

    def wait(self, job_id: str, seconds: float | None = None) -> Job:
        """The job once it has ended, or as it is after `seconds`.

        Raises:
            NotFound: no job has this id.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        nap = FIRST_LOOK
        while True:
            job = self.job(job_id)
            if job.state.is_final or (deadline is not None and time.monotonic() >= deadline):
                return job
            time.sleep(nap)
            nap = min(nap * 2, LAST_LOOK)

    def cancel(self, job_id: str, reason: str = "cancelled by hand") -> None:
        """Cancel a job that has not ended.

        Raises:
            NotFound: no job has this id.
            Conflict: it has ended already.
        """
        before = read.read(self.ledger, job_id)
        change.cancel(self.ledger, job_id, reason)
        if before is not None and before.state is State.SCHEDULED and before.queue:
            # Its doorbell was not pushed yet: a worker that pops it now tells Celery's listeners.
            ring(self.doorbells, [Ring(job_id, list_of(before.queue, before.priority), 0)])

    def replay(self, job_id: str) -> None:
        """Queue a failed or cancelled job again.

        Raises:
            NotFound: no job has this id.
            Conflict: it is neither failed nor cancelled.
        """
        replay(self.ledger, self.doorbells, job_id)

    def count_selected(self, selection: Selection) -> dict[State, int]:
        """How many jobs of each state `selection` means now.

        Raises:
            Unavailable: Postgres is away.
        """
        return count(self.ledger, selection)

    def cancel_many(
        self,
        selection: Selection,
        reason: str = "cancelled by hand",
        progress: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Cancel the jobs that `selection` means, in batches; see `worker.flows.bulk.cancel_many`.

        Example:
            from worker.client import Client, Selection
            from worker.jobs.states import State

            client.cancel_many(Selection((State.QUEUED,), queue="mail"), "not wanted")
        """
        return bulk.cancel_many(self.ledger, selection, reason, progress)

    def replay_many(
        self, selection: Selection, progress: Callable[[int], None] = lambda done: None
    ) -> int:
        """Queue again the jobs that `selection` means, in batches; see
        `worker.flows.bulk.replay_many`."""
        return bulk.replay_many(self.ledger, self.doorbells, selection, progress)

    def status(self, late: float = LATE_SECONDS) -> Report:
        """Keepers, workers, queues, and what is wrong.

        Args:
            late: seconds that a ready job may wait before that is a problem.

        Raises:
            Unavailable: a store is away.
        """
        return report(self.ledger, self.doorbells, late)

    def close(self) -> None:
        """Close every connection."""
        self.ledger.close()
        self.doorbells.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
