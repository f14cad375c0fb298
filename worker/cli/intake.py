"""Take jobs in by the file: what is good is enqueued, what is not is told line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.cli.lines import Line, job_of
from worker.client import Client
from worker.errors import InvalidRequest, LedgerError, RequestError, Unavailable
from worker.flows.enqueue import catalogue_of, check, enqueue
from worker.flows.ring import ring
from worker.jobs.job import Enqueued, NewJob
from worker.ledger.catalogue import Catalogue, read_catalogue
from worker.ledger.insert import insert

#: Told of every line, in their order: its number, and its job or why it was refused.
Tell = Callable[[int, Enqueued | LedgerError], None]
#: A line's number, and the job in it or why there is none.
Read = tuple[int, NewJob | RequestError]


@dataclass
class Tally:
    """What became of a file's lines.

    Attributes:
        created: jobs that are new.
        known: lines whose job was there already, by its key or id.
        refused: lines without a job.
        ids: of the jobs, new or known; kept only when asked for.
    """

    created: int = 0
    known: int = 0
    refused: int = 0
    ids: list[str] = field(default_factory=list)

    @property
    def lines(self) -> int:
        """How many lines there were, blank ones apart."""
        return self.created + self.known + self.refused

    @property
    def words(self) -> str:
        """The tally for people."""
        parts = [f"{self.created} {'job' if self.created == 1 else 'jobs'} enqueued"]
        parts += [f"{self.known} known already"] if self.known else []
        parts += [f"{self.refused} refused"] if self.refused else []
        return f"{', '.join(parts)}."


class Intake:
    """Enqueues a stream of lines.

    Args:
        client: enqueues.
        defaults: for lines that do not say: see `worker.cli.lines.FIELDS`.
        tell: told what became of each line.
        keep_ids: whether the tally shall know the jobs' ids.
    """

    def __init__(
        self, client: Client, defaults: Mapping[str, Any], tell: Tell, *, keep_ids: bool
    ) -> None:
        self._client, self._defaults, self._tell = client, defaults, tell
        self._keep_ids = keep_ids
        self._last = 0
        self.tally = Tally()

    def take(self, batches: Iterable[Sequence[Line]]) -> None:
        """Enqueue every good line; each batch is durable before the next is read.

        Raises:
            Unavailable: Postgres is away; the message says how far this came.
        """
        catalogue_of(self._client.ledger)  # warns once when it is empty
        for batch in batches:
            try:
                catalogue = read_catalogue(self._client.ledger)
                read = [self._read(line, catalogue) for line in batch]
                jobs = [job for _, job in read if isinstance(job, NewJob)]
                answers = iter(enqueue(self._client.ledger, self._client.doorbells, jobs))
            except Unavailable as exc:
                raise type(exc)(f"{exc}{self._so_far()}") from None
            for number, job in read:
                self._count(number, next(answers) if isinstance(job, NewJob) else job)

    def take_all_or_none(self, batches: Callable[[], Iterable[Sequence[Line]]]) -> None:
        """Enqueue all lines in one transaction; what was enqueued is kept in memory till it ends.

        Args:
            batches: starts at the first line whenever it is called.

        Raises:
            InvalidRequest: a line was refused; nothing was enqueued.
            Unavailable: Postgres is away; nothing was enqueued.
        """
        catalogue = catalogue_of(self._client.ledger)

        def work(connection: Any) -> list[tuple[int, Enqueued]]:
            self.tally = Tally()
            taken: list[tuple[int, Enqueued]] = []
            for batch in batches():
                self._take_into(connection, batch, catalogue, taken)
            if self.tally.refused:
                lines = self.tally.refused + len(taken)
                raise InvalidRequest(
                    f"Nothing was enqueued: {self.tally.refused} of {lines} lines refused."
                )
            return taken

        taken = self._client.ledger.run(work)
        ring(self._client.doorbells, [answer.ring for _, answer in taken if answer.ring])
        for number, answer in taken:
            self._count(number, answer)

    def _take_into(
        self,
        connection: Any,
        batch: Sequence[Line],
        catalogue: Catalogue,
        taken: list[tuple[int, Enqueued]],
    ) -> None:
        read = [self._read(line, catalogue) for line in batch]
        answers = iter(insert(connection, [job for _, job in read if isinstance(job, NewJob)]))
        for number, job in read:
            answer = next(answers) if isinstance(job, NewJob) else job
            if isinstance(answer, Enqueued):
                taken.append((number, answer))
            else:
                self._count(number, answer)

    def _read(self, line: Line, catalogue: Catalogue) -> Read:
        job = job_of(line, self._defaults, self._client.settings)
        if isinstance(job, NewJob):
            try:
                check(catalogue, job)
            except RequestError as exc:
                return line.number, exc
        return line.number, job

    def _count(self, number: int, answer: Enqueued | LedgerError) -> None:
        self._last = number
        if isinstance(answer, LedgerError):
            self.tally.refused += 1
        else:
            self.tally.created += answer.created
            self.tally.known += not answer.created
            if self._keep_ids:
                self.tally.ids.append(answer.id)
        self._tell(number, answer)

    def _so_far(self) -> str:
        if not self._last:
            return "; nothing was enqueued."
        return f"; the lines up to {self._last} are done, those after it may be sent again."
