"""The demo's verdict: what the ledger and the receiver say, and whether the promise was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from worker.jobs.job import Job
from worker.jobs.states import State
from worker.stack.receiver import Deliveries


@dataclass(frozen=True, slots=True)
class Verdict:
    """The demo's outcome. Times are seconds; `faults` is empty when the promise was kept.

    Attributes:
        accepted: jobs that the enqueue took.
        recorded: of those, rows that succeeded and hold a result.
        delivered: of those, jobs that succeeded and that the receiver answered 2xx.
        retried, rescued: jobs with an attempt of that kind.
        failed: jobs that ended otherwise, or of which there is no row.
        waiting: jobs that have not ended when the time ran out: they are safe, and late.
        p50, p99: from enqueue to result, by the database's clock.
        receiver: the other side's view.
        killed: the worker that was killed, and how many jobs died with it.
        faults: each a sentence.
        late: what to do when the time ran out before every job had ended; else `None`.
    """

    accepted: int
    recorded: int
    delivered: int
    retried: int
    rescued: int
    failed: int
    elapsed: float
    p50: float | None
    p99: float | None
    receiver: Deliveries
    killed: tuple[str, int] | None
    faults: list[str] = field(default_factory=list)
    waiting: int = 0
    late: str | None = None

    def as_json(self) -> dict[str, Any]:
        """One object, for machines."""
        killed = self.killed and {"worker": self.killed[0], "jobs_held": self.killed[1]}
        return {
            "ok": not self.faults and self.late is None,
            "accepted": self.accepted,
            "recorded": self.recorded,
            "delivered": self.delivered,
            "retried": self.retried,
            "rescued": self.rescued,
            "failed": self.failed,
            "waiting": self.waiting,
            "elapsed_seconds": round(self.elapsed, 3),
            "p50_seconds": self.p50,
            "p99_seconds": self.p99,
            "killed": killed,
            "receiver": {
                "received": self.receiver.received,
                "distinct_keys": len(self.receiver.delivered),
                "duplicates": self.receiver.duplicates,
                "refused": self.receiver.refused,
                "bad_signatures": self.receiver.bad_signatures,
            },
            "faults": self.faults,
            "late": self.late,
        }

    def as_table(self) -> Table:
        """For people."""
        table = Table(title="Read back from Postgres and from the receiver", title_justify="left")
        table.add_column("what")
        table.add_column("count", justify="right")
        table.add_column("meaning", style="dim")
        for row in self._rows():
            table.add_row(*row)
        return table

    def _rows(self) -> list[tuple[str, str, str]]:
        seen = self.receiver
        died = f"jobs held by {self.killed[0]} when it was killed" if self.killed else "no worker"
        return [
            ("accepted", str(self.accepted), "rows committed before the enqueue returned"),
            ("delivered", str(self.delivered), "succeeded, and answered 2xx by the receiver"),
            ("results", str(self.recorded), "recorded, one row each"),
            ("retried", str(self.retried), "jobs with an attempt that was put off"),
            ("rescued", str(self.rescued), "jobs with an attempt lost with its worker"),
            ("killed", str(self.killed[1] if self.killed else 0), died),
            ("failed", str(self.failed), "jobs that ended otherwise, or have no row"),
            ("waiting", str(self.waiting), "jobs that are safe, and not done yet"),
            ("elapsed", f"{self.elapsed:.1f} s", "from the first enqueue to the last result"),
            ("p50", _seconds(self.p50), "enqueue to result"),
            ("p99", _seconds(self.p99), "ditto; a rescue waits for the lease to end"),
            ("receiver: distinct", str(len(seen.delivered)), "keys that it answered 2xx"),
            ("receiver: duplicates", str(seen.duplicates), "seen again, told by their key"),
            ("receiver: refused", str(seen.refused), "calls that it answered 503"),
            ("receiver: forged", str(seen.bad_signatures), "calls with a wrong signature"),
        ]


def judge(
    accepted: Sequence[str],
    jobs: Sequence[Job],
    seen: Deliveries,
    *,
    elapsed: float,
    killed: tuple[str, int] | None,
    kill: bool,
) -> Verdict:
    """Hold the ledger's rows and the receiver's memory against what was accepted.

    Args:
        accepted: the ids that the enqueue returned.
        jobs: the rows of those ids.
        seen: the receiver's memory.
        elapsed: seconds from the first enqueue to the last result.
        killed: the worker that was killed, and how many jobs it held.
        kill: whether one was to be.
    """
    recorded = {j.id for j in jobs if j.state is State.SUCCEEDED and j.result is not None}
    waiting = {j.id for j in jobs if not j.state.is_final}
    delivered = recorded & seen.delivered.keys()
    rescued = _with_attempt(jobs, "lost")
    waits = sorted(
        (j.finished_at - j.created_at).total_seconds() for j in jobs if j.finished_at is not None
    )
    return Verdict(
        accepted=len(accepted),
        recorded=len(recorded),
        delivered=len(delivered),
        retried=_with_attempt(jobs, "retried"),
        rescued=rescued,
        failed=len(set(accepted) - waiting - {j.id for j in jobs if j.state is State.SUCCEEDED}),
        elapsed=elapsed,
        p50=_percentile(waits, 0.50),
        p99=_percentile(waits, 0.99),
        receiver=seen,
        killed=killed,
        faults=[
            *_lost(accepted, jobs, recorded | waiting, recorded, delivered, seen),
            *([] if waiting else _unproven(kill, rescued)),
        ],
        waiting=len(waiting),
        late=_late(len(waiting), elapsed) if waiting else None,
    )


def _late(waiting: int, elapsed: float) -> str:
    return (
        f"{waiting} webhooks are not delivered yet after {elapsed:.0f} s. None of them is lost:"
        " each is a row in Postgres, and waits or runs. This machine is busy or slow; run the demo"
        " again when it is idle, or with --patience for more than its seconds."
    )


def _lost(
    accepted: Sequence[str],
    jobs: Sequence[Job],
    known: set[str],
    recorded: set[str],
    delivered: set[str],
    seen: Deliveries,
) -> list[str]:
    wanted = set(accepted)
    faults = []
    if len(wanted) != len(accepted):
        faults.append(f"{len(accepted) - len(wanted)} webhooks were accepted under an id twice.")
    if len(jobs) != len(wanted) or {j.id for j in jobs} != wanted:
        faults.append(f"{len(wanted)} webhooks were accepted, but {len(jobs)} rows are there.")
    if missing := wanted - known:
        faults.append(f"{len(missing)} webhooks have no result: {_examples(missing, jobs)}.")
    if missing := recorded - delivered:
        faults.append(f"{len(missing)} results, but the receiver knows nothing of them.")
    if seen.bad_signatures:
        faults.append(f"{seen.bad_signatures} calls had a wrong signature.")
    return faults


def _unproven(kill: bool, rescued: int) -> list[str]:
    if kill and not rescued:
        return ["No job was rescued, so the kill proved nothing."]
    return []


def _examples(ids: set[str], jobs: Sequence[Job]) -> str:
    rows = {job.id: job for job in jobs}
    said = []
    for job_id in sorted(ids)[:3]:
        job = rows.get(job_id)
        said.append(f"{job_id} is {job.state}: {job.error}" if job else f"{job_id} has no row")
    return "; ".join(said)


def _with_attempt(jobs: Sequence[Job], outcome: str) -> int:
    return sum(any(attempt.outcome == outcome for attempt in job.attempts) for job in jobs)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of what is sorted; `None` of nothing."""
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
