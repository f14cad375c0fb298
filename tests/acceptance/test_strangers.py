"""Workers of two apps on one queue, and tasks that nobody knows: nothing spins, all is said."""

from __future__ import annotations

import sys

from tests.acceptance.conftest import Service
from worker.flows.enqueue import enqueue
from worker.jobs.message import new_job
from worker.jobs.states import State

APP = """
from celery import Celery
from worker.runtime import durable

app = durable(Celery("shop"))


@app.task
def order(number):
    return number


@app.task
def learn(name):
    def known():
        return name

    app.task(name=name)(known)
"""
#: Jobs of a task that nobody knows.
MANY = 1000


def test_jobs_of_an_app_end_soon_beside_two_workers_that_do_not_know_it(service: Service) -> None:
    # Given two workers of another app on the default queue, and jobs of a misspelt task
    foreign = [service.worker(), service.worker()]
    service.keeper()
    jobs = [new_job("shop.ordr") for _ in range(MANY)]
    enqueue(service.client.ledger, service.client.doorbells, jobs)  # as `send_task`: no catalogue
    service.until(
        lambda: service.client.counts().get(State.SCHEDULED, 0) == MANY, 30, "all are put off"
    )
    misspelt = service.client.job(jobs[0].id)
    assert (misspelt.attempt, misspelt.attempts) == (0, ())
    assert str(misspelt.error).startswith("no living worker knows the task 'shop.ordr'")
    # When the app's own worker comes, and its jobs
    (service.folder / "shop.py").write_text(APP)
    argv = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "threads", "-c", "4"]
    own = service.processes([*argv, "-l", "info"], {"PYTHONPATH": str(service.folder)})
    own.wait_for_line("ready.")
    orders = [new_job("shop.order", [number]) for number in range(30)]
    enqueue(service.client.ledger, service.client.doorbells, orders)
    # Then these end soon, each by its first attempt
    ids = [job.id for job in orders]
    assert service.all_ended(ids, 20) == {State.SUCCEEDED: 30}
    assert {service.client.job(job_id).attempt for job_id in ids} == {1}
    # So does what that worker learns while it runs, and what has waited for it
    late, learn = new_job("shop.late"), new_job("shop.learn", ["shop.late"])
    enqueue(service.client.ledger, service.client.doorbells, [late, learn])
    assert service.all_ended([late.id, learn.id], 30) == {State.SUCCEEDED: 2}
    # And the others wait, said once by each worker, with the name that was meant
    again = service.client.job(jobs[-1].id)
    assert (again.state.is_final, again.attempt) == (False, 0)
    for worker in foreign:
        assert worker.output.count("no living worker knows the task 'shop.ordr'") == 1
    late = new_job("shop.ordr")
    enqueue(service.client.ledger, service.client.doorbells, [late])
    service.until(lambda: "nearest name is 'shop.order'" in str(service.client.job(late.id).error))
