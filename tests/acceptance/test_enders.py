"""A job that ends worker after worker is found and condemned; an end that was asked for blames
nobody. Rule 31."""

from __future__ import annotations

from contextlib import closing

from tests.acceptance.conftest import Service
from worker.jobs.states import State
from worker.ledger.database import Ledger

TASKS = {
    "WORKER_TASKS": "tests.acceptance.enders",
    "WORKER_DRAIN_SECONDS": "1",
    "WORKER_LOST_LIMIT": "2",
}


def test_who_ends_the_process_for_suspects_by_a_signal_is_condemned(service: Service) -> None:
    # Given a job that was running at several shutdowns, and is a suspect for that
    once = {**TASKS, "WORKER_LOST_LIMIT": "1"}  # each loss takes the start of a process
    service.keeper(**once)
    job_id = service.enqueue("end.parent")
    with closing(Ledger.of(service.settings, "test", connections=1)) as ledger:
        ledger.execute("UPDATE ledger.jobs SET suspicion = 1")
    # When a worker's process for suspects runs it, to which it sends a signal as an operator would
    worker = service.worker("threads", 2, **once)

    # Then it is poison, and its worker goes on
    job = service.ended(job_id, 60)
    assert (job.state, job.lost) == (State.FAILED, 1)
    assert {attempt.outcome for attempt in job.attempts} == {"lost"}
    assert worker.exit_code is None
    assert "has not asked this process for suspects to end" in worker.output


def test_who_ends_worker_after_worker_is_condemned(service: Service) -> None:
    # Given a supervised worker with innocents, and a job that ends its worker by a fault
    service.keeper(**TASKS)
    workers = [service.worker("prefork", 3, **TASKS)]
    innocents = service.enqueue_many("test.hold", 2, service.log, service.gate)
    service.running(innocents)
    guilty = service.enqueue("end.received", service.log)

    def supervised() -> bool:
        if workers[-1].exit_code is not None:
            service.open_gate()  # each of them runs alone from now on, and not for long
            workers.append(service.worker("prefork", 3, **TASKS))
        return service.client.job(guilty).state.is_final

    service.until(supervised, 90, "the guilty is found")

    # Then it is poison, with its losses as evidence
    job = service.client.job(guilty)
    assert (job.state, job.lost) == (State.FAILED, 2)
    assert "poison" in (job.error or "")
    assert {attempt.outcome for attempt in job.attempts} == {"lost"}

    # And the innocents are not, and end well
    assert service.all_ended(innocents) == {State.SUCCEEDED: 2}
    assert {one.lost for one in service.client.summary(innocents)} == {0}
