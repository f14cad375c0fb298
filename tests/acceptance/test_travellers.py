"""What a task ends with, in each pool: recorded as an end, and the worker goes on. Rule 31."""

from __future__ import annotations

import json

import pytest

from tests.acceptance import travellers
from tests.acceptance.conftest import Service
from worker.jobs.states import State

FAILED, SUCCEEDED = State.FAILED, State.SUCCEEDED

#: The ends of `travel.raise` that are no failure; a Retry that nobody published ends nothing.
OTHERWISE = {"ignore": SUCCEEDED}
#: What is kept of some errors.
SAID = {
    "abort": "Abort: stop (7)",
    "refused": "UnpickleableExceptionWrapper: Refused('stop (7)')",  # as stock names it
    "speechless": "KeyboardInterrupt: str",
    "interrupt": "KeyboardInterrupt",
    "elsewhere": "Elsewhere",
}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_whatever_a_task_ends_with_its_worker_goes_on(service: Service, pool: str) -> None:
    # Given one worker, and a job for each thing that does not survive the way
    worker = service.worker(
        pool, 2, WORKER_TASKS="tests.acceptance.travellers", WORKER_LEASE_SECONDS="10"
    )
    service.keeper()
    raised = {what: service.enqueue("travel.raise", what) for what in travellers.RAISED}
    hooked = [
        service.enqueue(f"travel.hook.{what}", fails)
        for what in ("abort", "unwritable", "speechless")
        for fails in (True, False)
    ]
    returned = {what: service.enqueue("travel.return", what) for what in ("lambda", "harmful")}
    fine = [
        service.enqueue("travel.return", "word"),
        service.enqueue("travel.call", service.log),
        service.enqueue("travel.retry"),
        service.enqueue("travel.unpack", {"__type__": "parcel", "__value__": ""}),
    ]
    signalled = service.enqueue("travel.signal")

    # When they have ended
    every = [*raised.values(), *hooked, *returned.values(), *fine, signalled]
    service.all_ended(every)

    # Then each has the end that it deserves, after one attempt, and nothing of it was lost
    ends = {what: service.client.job(job_id) for what, job_id in raised.items()}
    assert {what: job.state for what, job in ends.items()} == {
        what: OTHERWISE.get(what, FAILED) for what in raised
    }
    assert [what for what in SAID if not (ends[what].error or "").startswith(SAID[what])] == []
    assert all(len(job.error or "") <= 2000 for job in ends.values())
    assert {service.client.job(job_id).state for job_id in returned.values()} == {FAILED}
    assert [service.client.job(job_id).state for job_id in fine] == [SUCCEEDED] * 4
    assert json.loads(service.client.job(fine[3]).result or b"") == "Parcel"
    assert service.client.job(signalled).state is FAILED
    assert all(service.client.job(job_id).lost == 0 for job_id in every)

    # And the worker is the same one
    assert worker.exit_code is None
    assert "Unrecoverable" not in worker.output
    assert "outside of the job" not in worker.output

    # When one asks its worker to shut down, then it has failed, and will end no other worker. In a
    # child it reaches no worker, which drains when asked.
    job = service.ended(service.enqueue("travel.shutdown"))
    assert (job.state, job.attempt) == (FAILED, 1)
    assert (job.error or "").startswith("WorkerShutdown")
    assert worker.wait() == 1 if pool == "threads" else worker.terminate() == 0
