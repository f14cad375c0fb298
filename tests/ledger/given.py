"""What a test of the ledger begins with: jobs and leases, made by the ledger's own statements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from worker.jobs.job import Claim, Enqueued, Fence, Finish, Job, NewJob
from worker.jobs.message import new_job
from worker.jobs.states import MOVES, State
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.lease import open_lease
from worker.ledger.read import read

T = TypeVar("T")
#: Seconds after which a condition that should come true counts as never coming true.
PATIENCE = 20.0


def connected(ledger: Ledger) -> Ledger:
    """The ledger, with its connection made: making one commits too, and is no commit of a job."""
    ledger.execute("SELECT 1")
    return ledger


def job(job_id: str | None = None, *args: Any, **more: Any) -> NewJob:
    """A job that is not enqueued yet."""
    return new_job(more.pop("task", "tests.add"), args, job_id=job_id, **more)


def enqueued(ledger: Ledger, *ids: str, **more: Any) -> list[str]:
    """Jobs in the ledger, with these ids or with one made for them."""
    answers = enqueue(ledger, [job(job_id, **more) for job_id in ids or (None,)])
    created = [answer.id for answer in answers if isinstance(answer, Enqueued) and answer.created]
    assert len(created) == len(answers)
    return created


def lease(ledger: Ledger, seconds: float = 600.0, **more: Any) -> str:
    """A lease of a worker that serves the queue `celery`."""
    return open_lease(ledger, more.pop("name", "w1"), ["celery"], seconds, **more)


def claimed(ledger: Ledger, *ids: str, lease_id: str | None = None, **more: Any) -> list[Claim]:
    """Running jobs, under `lease_id` or a lease of their own; in the order of their ids."""
    made = enqueued(ledger, *ids, **more)
    claims = claim(ledger, lease_id or lease(ledger), made)
    assert len(claims) == len(made)
    return sorted(claims, key=lambda one: one.fence.id)


def running(ledger: Ledger, job_id: str | None = None, **more: Any) -> Fence:
    """One running job."""
    (one,) = claimed(ledger, *([job_id] if job_id else []), **more)
    return one.fence


def success(fence: Fence, result: bytes = b"3", **more: Any) -> Finish:
    """The attempt returned."""
    return Finish(fence, State.SUCCEEDED, "succeeded", result, "application/json", **more)


def failure(fence: Fence, error: str = "ValueError: no", **more: Any) -> Finish:
    """The attempt raised."""
    return Finish(fence, State.FAILED, "failed", error=error, **more)


def retry(fence: Fence, delay: float = 600.0, **more: Any) -> Finish:
    """The attempt wants another one."""
    return Finish(fence, State.SCHEDULED, "retried", delay=delay, **more)


def job_of(ledger: Ledger, job_id: str) -> Job:
    """The job as the ledger knows it."""
    found = read(ledger, job_id)
    assert found is not None, f"no job {job_id!r}"
    return found


def state_of(ledger: Ledger, job_id: str) -> State:
    """The job's state."""
    return job_of(ledger, job_id).state


def attempts_of(ledger: Ledger, job_id: str) -> list[tuple[int, str]]:
    """Number and outcome of each attempt that did not simply succeed."""
    return [(attempt.number, attempt.outcome) for attempt in job_of(ledger, job_id).attempts]


def expire(ledger: Ledger, *leases: str) -> None:
    """Let leases be over since a second, as if their workers had stopped long ago."""
    ledger.execute(
        "UPDATE ledger.workers SET expires_at = clock_timestamp() - interval '1 second'"
        " WHERE lease = ANY(CAST(:leases AS text[]))",
        {"leases": list(leases)},
    )


def make_due(ledger: Ledger, *ids: str) -> None:
    """Let scheduled jobs be due since a second."""
    ledger.execute(
        "UPDATE ledger.jobs SET run_at = clock_timestamp() - interval '1 second'"
        " WHERE id = ANY(CAST(:ids AS text[]))",
        {"ids": list(ids)},
    )


_TIMES = {
    "jobs": ("dispatched_at", "created_at", "run_at", "expires_at", "started_at", "finished_at"),
    "workers": ("started_at", "renewed_at", "expires_at"),
    "leaders": ("expires_at",),
    "groups": ("created_at",),
}


def step_clock(ledger: Ledger, seconds: float) -> None:
    """Let Postgres's clock have stepped by `seconds`, back if they are negative: to a statement,
    every stored time stands that much further in the other direction."""
    for table, columns in _TIMES.items():
        moved = (f"{name} = {name} - :seconds * interval '1 second'" for name in columns)
        ledger.execute(f"UPDATE ledger.{table} SET {', '.join(moved)}", {"seconds": seconds})


def age(ledger: Ledger, column: str, seconds: float, *ids: str) -> None:
    """Move a time of jobs into the past."""
    ledger.execute(
        f"UPDATE ledger.jobs SET {column} = {column} - :seconds * interval '1 second'"
        " WHERE id = ANY(CAST(:ids AS text[]))",
        {"seconds": seconds, "ids": list(ids)},
    )


def guard_moves(ledger: Ledger) -> None:
    """Let Postgres refuse, loudly, every move that `MOVES` does not have."""
    legal = ", ".join(
        f"('{source}', '{target}')" for source, targets in MOVES.items() for target in targets
    )
    ledger.execute(f"""
        CREATE FUNCTION refuse_illegal_move() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF OLD.state <> NEW.state AND (OLD.state, NEW.state) NOT IN ({legal}) THEN
                RAISE EXCEPTION 'illegal move of % from % to %', OLD.id, OLD.state, NEW.state;
            END IF;
            IF NEW.attempt <> OLD.attempt
                AND (NEW.attempt <> OLD.attempt + 1 OR NEW.state <> 'running') THEN
                RAISE EXCEPTION 'only a claim raises the attempt of %', OLD.id;
            END IF;
            RETURN NEW;
        END $$
    """)
    ledger.execute("""
        CREATE TRIGGER refuse_illegal_move BEFORE UPDATE ON ledger.jobs
        FOR EACH ROW EXECUTE FUNCTION refuse_illegal_move()
    """)


def until(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What `condition` says, once that is true.

    Raises:
        AssertionError: it was not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)  # between two looks; nothing rests on how long it is
    return value


def waits_for_a_lock(ledger: Ledger) -> bool:
    """Whether some session of this database waits for a lock."""
    rows = ledger.execute(
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(rows)


def all_at_once(works: Sequence[Callable[[], T]]) -> list[T]:
    """The answers of `works`, each run in a thread of its own, all released together."""
    start = threading.Barrier(len(works))
    answers: dict[int, T] = {}
    faults: list[BaseException] = []

    def run(number: int) -> None:
        try:
            start.wait(PATIENCE)
            answers[number] = works[number]()
        except BaseException as exc:
            faults.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    join(threads, start_first=True)
    if faults:
        raise faults[0]
    return [answers[number] for number in range(len(works))]


def join(threads: Iterable[threading.Thread], *, start_first: bool = False) -> None:
    """Wait for the threads' ends, and fail when one of them hangs."""
    threads = list(threads)
    for thread in threads:
        if start_first:
            thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), f"{thread.name} hangs"
