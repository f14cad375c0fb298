"""Suspects on real workers: soon, side by side, and only the guilty is condemned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.acceptance.conftest import Service
from worker.jobs.states import State


def test_a_killed_workers_long_jobs_run_again_side_by_side(service: Service) -> None:
    # Given a worker with twelve long jobs, and another one
    service.keeper()
    victim = service.worker("threads", 12)
    ids = service.enqueue_many("test.hold", 12, service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == 12)
    service.worker("threads", 16)

    # When the first is killed
    victim.kill()

    # Then all of them run again at the same time, each in a process of its own
    service.until(lambda: len(service.ran("start")) == 24, 60, "all run again")
    assert service.ran("end") == []
    pids = {pid for _, pid, _ in service.ran("start")[12:]}
    assert len(pids) == 12
    service.open_gate()
    assert service.all_ended(ids) == {State.SUCCEEDED: 12}
    for job in service.client.summary(ids):
        assert (job.attempt, job.lost, job.suspect) == (2, 0, False)


def test_the_place_for_suspects_is_there_before_the_lease_is_over(service: Service) -> None:
    # Given a worker with two jobs, and another one
    slow = {"WORKER_LEASE_SECONDS": "30"}
    service.keeper(**slow)
    victim = service.worker("threads", 2, **slow)
    ids = service.enqueue_many("test.hold", 2, service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == 2)
    service.worker("threads", 2, **slow)

    # When the first stops to renew
    victim.send(signal.SIGSTOP)

    # Then the other one starts a process while the jobs are not rescued yet
    service.until(
        lambda: bool(service.client.ledger.execute("SELECT 1 FROM ledger.workers WHERE isolated")),
        60,
        "an isolated process is there",
    )
    assert service.client.counts(ids) == {State.RUNNING: 2}
    # And its pod is that of the one that started it, which no other worker is in
    pods = service.client.ledger.execute(
        "SELECT name, pod, isolated FROM ledger.workers ORDER BY name"
    )
    assert [row.isolated for row in pods] == [True, False, False]
    assert pods[0].pod == pods[2].pod != pods[1].pod
    assert all(job.attempt == 1 for job in service.client.summary(ids))


#: Starts the command with itself as the worker that asks for it, and is gone before it is up.
HASTY = """
import os, subprocess, sys
origin = {"WORKER_ISOLATED": f"{os.getpid()}:a-pod"}
subprocess.Popen(sys.argv[1:], env={**os.environ, **origin})
"""


def test_a_process_whose_worker_has_died_meanwhile_does_not_begin(service: Service) -> None:
    # Given a suspect, and a worker that dies a moment after it has started a process for it
    suspect = service.enqueue("test.hold", service.log, service.gate)
    service.client.ledger.execute("UPDATE ledger.jobs SET suspicion = 1")
    run = [sys.executable, "-m", "worker", "run", "-P", "threads"]
    with subprocess.Popen(
        [sys.executable, "-c", HASTY, *run],
        env={**service.processes._environment, **service._variables({})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as worker:
        try:
            # Then the process ends: nobody has this pipe open any more
            said, _ = worker.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)

    # And it has run nothing, and announced nothing
    assert "ready." not in said, said
    assert service.ran("start") == []
    assert service.client.job(suspect).state is State.QUEUED


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_poison_among_many_is_condemned_alone(service: Service, pool: str) -> None:
    # Given a worker with innocents and a job that kills its process, and a supervisor
    service.keeper()
    workers = [service.worker(pool, 8)]
    innocents = service.enqueue_many("test.hold", 6, service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == 6)
    guilty = service.enqueue("test.die", service.log)

    def supervised() -> bool:
        if workers[-1].exit_code is not None:
            workers.append(service.worker(pool, 8))
        return service.client.job(guilty).state.is_final

    service.until(supervised, 90, "the poison is found")

    # Then it is condemned, and the innocents run on beside it
    job = service.client.job(guilty)
    assert job.state is State.FAILED and "poison" in (job.error or "")
    again = 6 if pool == "threads" else 0
    service.until(lambda: len(service.ran("start")) == 6 + again, 60, "the innocents run")
    service.open_gate()
    assert service.all_ended(innocents) == {State.SUCCEEDED: 6}
    for job in service.client.summary(innocents):
        assert (job.lost, job.suspect, len(job.attempts)) == (0, False, 1 if again else 0)


@pytest.mark.parametrize("whom", ["parent", "pod"])
def test_who_kills_more_than_its_own_process_is_condemned_in_the_end(
    service: Service, whom: str
) -> None:
    # Given a supervised worker with innocents, and a job that takes more than its process along
    service.keeper()
    workers = [service.worker("threads", 4)]
    innocents = service.enqueue_many("test.sleep", 2, service.log, 3.0)
    service.running(innocents)
    guilty = service.enqueue("test.die_with", service.log, whom)

    def supervised() -> bool:
        if workers[-1].exit_code is not None:
            workers.append(service.worker("threads", 4))
        return service.client.job(guilty).state.is_final

    service.until(supervised, 240, "the guilty is found")

    # Then it is poison, though no loss of it was that of one child
    job = service.client.job(guilty)
    assert job.state is State.FAILED
    assert job.error == f"poison: {job.lost} attempts were lost with their process"
    assert len(service.ran("die-isolated")) >= 3
    if whom == "pod":
        assert len(workers) > len(service.ran("die-isolated"))  # each time the worker died with it

    # And the innocents have ended well, or do now
    assert service.all_ended(innocents) == {State.SUCCEEDED: 2}
