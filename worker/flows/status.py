"""How the service does, and what is wrong with it, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from worker.broker.doorbells import Doorbells
from worker.errors import BrokerUnavailable
from worker.ledger.database import Ledger
from worker.ledger.status import Queue, Status, read_status

#: Seconds of a wait that is worth a word, unless somebody chooses others.
LATE_SECONDS: Final = 60.0
#: Seconds by which a due job may be late before the keeper counts as not doing its work.
OVERDUE_SECONDS: Final = 10.0

NO_KEEPER: Final = (
    "No keeper is alive: scheduled jobs, retries, lost doorbells and the jobs of workers that died"
    " wait; start one with `worker keeper`."
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that somebody should act on: a word for programs, a sentence for people."""

    code: str
    says: str


@dataclass(frozen=True, slots=True)
class Report:
    """How the service does.

    Attributes:
        status: what the ledger knows.
        quarantine: entries in Redis that no worker could read; `None` while Redis is away.
        problems: what is wrong; empty when all is well.
    """

    status: Status
    quarantine: int | None
    problems: tuple[Problem, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times as they are."""
        return {
            "ok": not self.problems,
            **asdict(self.status),
            "quarantine": self.quarantine,
            "problems": [asdict(problem) for problem in self.problems],
        }


def report(ledger: Ledger, doorbells: Doorbells, late: float = LATE_SECONDS) -> Report:
    """Ask both stores how the service does.

    Args:
        ledger: where the jobs are.
        doorbells: where the quarantine is.
        late: seconds of a wait from which on it is a problem.

    Raises:
        Unavailable: Postgres is away.
    """
    status = read_status(ledger)
    problems = list(_problems(status, late))
    quarantine: int | None = None
    try:
        quarantine = doorbells.quarantine_length()
    except BrokerUnavailable as exc:
        problems.append(Problem("redis", f"{exc} Jobs are safe, and none is started until then."))
    if quarantine:
        problems.append(
            Problem(
                "quarantine",
                f"The quarantine holds {quarantine} entries that no worker could read; look at them"
                " with `redis-cli LRANGE ledger:quarantine 0 9`.",
            )
        )
    return Report(status, quarantine, tuple(problems))


def _problems(status: Status, late: float) -> Iterator[Problem]:
    if not any(keeper.leads and keeper.alive for keeper in status.keepers):
        yield Problem("no_keeper", NO_KEEPER)
    if any(worker.ahead for worker in status.workers):
        yield Problem(
            "clock",
            "A worker's lease was renewed in the future: Postgres's clock has stepped back, or an"
            " older server took over; mend its clock.",
        )
    for worker in status.workers:
        if not worker.alive and not worker.ahead:
            yield Problem(
                "lease_expired",
                f"Worker {worker.name} has not renewed its lease for {worker.silent:.0f} s: it is"
                f" dead or stuck; the keeper rescues what it runs ({worker.running} jobs).",
            )
    for queue in status.queues:
        yield from _of_queue(queue, late)
    if status.suspects:
        yield Problem(
            "suspects",
            f"{_jobs(status.suspects)} for a process of its own, suspected of ending the one it"
            " ran in; `worker job show` tells of the attempts.",
        )


def _of_queue(queue: Queue, late: float) -> Iterator[Problem]:
    name = queue.name
    if (queue.waiting or queue.overdue > OVERDUE_SECONDS) and not queue.served:
        jobs = queue.waiting or queue.scheduled
        yield Problem(
            "no_worker",
            f"{_jobs(jobs)} in queue {name} for a worker, and none that lives consumes it;"
            f" `worker run --queues {name}` does.",
        )
    elif queue.oldest > late:
        yield Problem(
            "late",
            f"The oldest job of queue {name} is ready for {queue.oldest:.0f} s: its workers are"
            " busy; run more of them, or see `worker job list --state running`.",
        )
    if queue.overdue > OVERDUE_SECONDS:
        yield Problem(
            "overdue",
            f"Scheduled jobs of queue {name} are {queue.overdue:.0f} s late: no keeper dispatches"
            " them in time.",
        )
    if queue.unknown:
        yield Problem(
            "unknown_task",
            f"{_jobs(queue.unknown)} in queue {name} for a task that no living worker knows;"
            f" `worker job list --state scheduled --queue {name}` names them.",
        )


def _jobs(count: int) -> str:
    return "1 job waits" if count == 1 else f"{count} jobs wait"
