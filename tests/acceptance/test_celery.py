"""What Celery users rely on works, natively, on the ledger."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signature
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeout

from tests.acceptance.conftest import Service
from worker.errors import Conflict, TooLarge
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings


@pytest.fixture
def app(settings: Settings) -> Iterator[Any]:
    """A producer: a durable app that knows no tasks."""
    made = durable(Celery("producer", set_as_current=False), settings)
    yield made
    made.close()


@pytest.fixture(params=["threads", "prefork"])
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_results_errors_states_and_limits_read_as_with_any_backend(
    service: Service, app: Any, pool: str
) -> None:
    service.keeper()
    service.worker(pool, 4)

    # results
    added = app.send_task("test.add", [2, 3])
    assert added.get(timeout=20) == 5
    assert (added.state, added.successful(), added.traceback) == ("SUCCESS", True, None)

    # errors, with their type and traceback
    failed = app.send_task("test.fails", ["so it goes"])
    with pytest.raises(ValueError, match="so it goes"):
        failed.get(timeout=20)
    assert failed.state == "FAILURE"
    assert "ValueError: so it goes" in failed.traceback

    # an ignored result is no result, and the job has succeeded all the same
    ignored = app.send_task("test.add", [1, 1], ignore_result=True)
    assert service.ended(ignored.id).state is State.SUCCEEDED
    assert service.ended(ignored.id).result is None

    # a result that is no JSON, or too large, fails the job with that reason
    for name, args, word in (
        ("test.unserializable", [], "not JSON serializable"),
        ("test.large", [2 << 20], "WORKER_RESULT_MAX_BYTES"),
    ):
        job = service.ended(app.send_task(name, args).id)
        assert job.state is State.FAILED
        assert word in (job.error or "")

    # progress
    told = app.send_task("test.progress", [service.gate])
    service.until(lambda: told.state == "PROGRESS")
    assert told.info == {"done": 3}
    service.open_gate()
    assert told.get(timeout=20) == "done"

    # children of a running task
    parent = app.send_task("test.parent", [service.log, 3])
    children = parent.get(timeout=20)
    assert sorted(child.id for child in parent.children) == sorted(children)
    assert service.all_ended(children) == {State.SUCCEEDED: 3}

    # forget drops the result; where the job is stays known
    added.forget()
    assert service.client.job(added.id).result is None
    assert service.client.job(added.id).state is State.SUCCEEDED


def test_retries_keep_their_id_and_take_their_message_with_them(
    service: Service, app: Any, pool: str
) -> None:
    service.keeper()
    service.worker(pool, 4)
    retried = app.send_task("test.flaky", [service.log, 2])
    assert retried.get(timeout=20) == 2
    job = service.ended(retried.id)
    assert (job.attempt, [a.outcome for a in job.attempts]) == (3, ["retried", "retried"])
    assert len(service.ran("try-0")) == len(service.ran("try-1")) == len(service.ran("try-2")) == 1

    # throw=False: a later return does not override the retry
    silent = app.send_task("test.flaky", [service.log, 1, False])
    assert silent.get(timeout=20) == 1

    # autoretry_for, with an ignored result: the end is recorded whatever is ignored
    auto = app.send_task("test.auto", [service.log])
    job = service.ended(auto.id)
    assert (job.state, job.attempt) == (State.FAILED, 3)
    assert len(service.ran("auto")) == 3


def test_canvas_works_and_each_step_is_a_durable_job(service: Service, app: Any, pool: str) -> None:
    service.keeper()
    service.worker(pool, 4)

    def sig(name: str, *args: Any, **options: Any) -> Any:
        return signature(name, args=args, app=app, **options)

    chained = chain(sig("test.add", 1, 2), sig("test.add", 10), sig("test.add", 100))()
    assert chained.get(timeout=20) == 113
    grouped = group(sig("test.add", n, n) for n in range(4))()
    assert grouped.get(timeout=20) == [0, 2, 4, 6]
    chorded = chord([sig("test.add", n, n) for n in range(3)], sig("test.total"))()
    assert chorded.get(timeout=30) == 6
    linked = app.send_task("test.add", [1, 1], link=sig("test.add", 5))
    linked.get(timeout=20)
    (child,) = linked.children
    assert child.get(timeout=20) == 7
    with_errback = app.send_task(
        "test.fails", link_error=sig("test.note_error", kwargs={"log": service.log})
    )
    service.ended(with_errback.id)
    service.until(lambda: bool(service.ran("errback")))
    assert app.send_task("test.replace", [5]).get(timeout=20) == 6
    assert app.send_task("test.replace_by_chain", [5]).get(timeout=20) == 16


def test_a_failed_chain_ends_its_later_steps_so_that_nobody_waits_for_ever(
    service: Service, app: Any
) -> None:
    service.worker()
    broken = chain(
        signature("test.fails", args=["stop"], app=app),
        signature("test.add", args=[1], app=app),
    )()
    with pytest.raises(ValueError, match="stop"):
        broken.get(timeout=20)
    assert service.client.job(broken.id).state is State.FAILED


def test_options_of_apply_async(service: Service, app: Any) -> None:
    service.keeper()
    # task_id, and an id that is taken
    named = app.send_task("test.add", [1, 1], task_id="my-own-id")
    assert named.id == "my-own-id"
    app.send_task("test.add", [1, 1], task_id="my-own-id")  # an identical repeat
    with pytest.raises(Conflict, match="my-own-id"):
        app.send_task("test.add", [1, 2], task_id="my-own-id")
    # too large
    with pytest.raises(TooLarge, match="WORKER_PAYLOAD_MAX_BYTES"):
        app.send_task("test.add", ["x" * (2 << 20), 1])
    # a queue of its own, that no worker serves yet: it waits, and is known
    elsewhere = app.send_task("test.add", [1, 1], queue="elsewhere")
    assert (elsewhere.state, service.client.job(elsewhere.id).queue) == ("PENDING", "elsewhere")
    with pytest.raises(CeleryTimeout):
        elsewhere.get(timeout=0.2)
    # expires: cancelled, with the reason
    late = app.send_task("test.add", [1, 1], queue="elsewhere", expires=0.2)
    job = service.ended(late.id)
    assert (job.state, job.error) == (State.CANCELLED, "expired before it was started")
    with pytest.raises(TaskRevokedError):
        late.get(timeout=5)
    # countdown and eta: rows until they are due
    at = datetime.now(UTC) + timedelta(seconds=1)
    later = app.send_task("test.add", [2, 2], eta=at)
    soon = app.send_task("test.add", [3, 3], countdown=0.7)
    assert service.client.job(later.id).state is State.SCHEDULED
    service.worker("threads", 4, "-Q", "celery,elsewhere")
    assert (later.get(timeout=20), soon.get(timeout=20), named.get(timeout=20)) == (4, 6, 2)
    assert elsewhere.get(timeout=20) == 2
    # revoke: a waiting job is cancelled in the ledger by whichever worker hears of it
    future = app.send_task("test.add", [1, 1], countdown=60)
    app.control.revoke(future.id)
    assert service.ended(future.id).state is State.CANCELLED
    assert future.state == "REVOKED"


def test_priorities_are_served_first_to_last(service: Service, app: Any) -> None:
    for priority in (9, 6, 3, 0):
        app.send_task("test.note", [service.log, f"p{priority}"], priority=priority)
    service.worker("solo", 1)
    service.until(lambda: bool(service.ran("p9")))
    with open(service.log) as file:
        assert [line.split()[0] for line in file] == ["p0", "p3", "p6", "p9"]


def test_a_job_due_in_the_future_starts_within_250_ms_of_its_time(service: Service) -> None:
    keeper = service.keeper()
    service.worker()
    keeper.wait_for_line("Leading")
    ids = [service.enqueue("test.add", 1, 1, delay=1.0 + n / 10) for n in range(10)]
    service.all_ended(ids)
    late = []
    for job in service.client.summary(ids):
        assert job.run_at is not None
        assert job.started_at is not None
        late.append((job.started_at - job.run_at).total_seconds())
    # The median: a single one can meet a busy machine, a fault meets all of them.
    assert sorted(late)[len(late) // 2] < 0.25, late
    assert min(late) >= 0


def test_a_rate_limited_task_keeps_its_rate_and_loses_nothing(service: Service) -> None:
    service.keeper()
    service.worker("threads", 8)
    ids = service.enqueue_many("test.limited", 8, service.log)
    assert service.all_ended(ids, 30) == {State.SUCCEEDED: 8}
    times = [float(line[2]) for line in service.ran("limited")]
    assert max(times) - min(times) >= 7 / 5 * 0.8


def test_a_task_that_no_worker_knows_waits_and_runs_when_one_does(
    service: Service, app: Any
) -> None:
    service.keeper()
    old = service.worker("threads", 2, WORKER_TASKS="")
    new = app.send_task("test.add", [20, 22])
    old.wait_for_line("no living worker knows the task 'test.add'")
    old.terminate()
    service.worker("threads", 2)
    assert new.get(timeout=30) == 42


def test_an_existing_app_with_a_base_of_its_own_is_durable_in_another_process(
    service: Service,
) -> None:
    # Given the user's app, run by Celery's own command, and its keeper
    service.keeper()
    argv = [sys.executable, "-m", "celery", "-A", "tests.acceptance.shop", "worker"]
    worker = service.processes(
        [*argv, "-P", "prefork", "-c", "2", "-l", "info", "--without-mingle"],
        {"WORKER_LEASE_SECONDS": "2"},
    )
    worker.wait_for_line("ready.")

    # When a producer in another process calls its tasks
    produce = (
        "from tests.acceptance.shop import order, broken, too_long, softly\n"
        f"log = {service.log!r}\n"
        "print(order.delay(log).get(timeout=20))\n"
        "print(order.delay(log, retry=True).get(timeout=20))\n"
        "print(broken.delay(log).id)\n"
        "print(too_long.delay(log).id)\n"
        "print(softly.delay(log).get(timeout=20))\n"
    )
    producer = service.processes([sys.executable, "-c", produce])
    assert producer.wait(60) == 0
    first, second, broken, too_long, soft = producer.output.split()

    # Then they run with the hooks of their base, and each end is recorded
    assert (first, second, soft) == ("ordered", "ordered", "soft")
    assert service.ended(broken).error == "RuntimeError: broken"
    limited = service.ended(too_long)
    assert limited.state is State.FAILED
    assert "TimeLimitExceeded" in (limited.error or "")
    assert len(service.ran("before_start")) == 4
    assert len(service.ran("on_success")) == 2
    assert len(service.ran("on_failure")) == 1
    assert len(service.ran("order-1")) == 1
    assert worker.exit_code is None


def test_jobs_of_a_producer_without_the_ledger_are_adopted(
    service: Service, redis_url: str
) -> None:
    service.keeper()
    plain = Celery("plain", broker=redis_url, set_as_current=False)
    old = Celery("old", broker=redis_url, set_as_current=False)
    old.conf.task_protocol = 1
    ids = [plain.send_task("test.add", [n, 1]).id for n in range(20)]
    ids += [old.send_task("test.add", [n, 1]).id for n in range(5)]
    ids += [plain.send_task("test.add", [1, 1], countdown=0.5).id]
    service.worker()
    assert service.all_ended(ids) == {State.SUCCEEDED: 26}
    # and one that nobody can read goes to the quarantine, without stopping anything
    service.client.doorbells._redis.lpush("celery", b"\xff no message")
    service.until(lambda: len(service.client.doorbells.quarantined()) == 1)
    assert plain.send_task("test.add", [1, 1]).id
    plain.close()
    old.close()


def test_an_app_that_is_closed_leaves_no_connection_to_postgres(
    service: Service, settings: Settings
) -> None:
    def connections() -> int:
        ((count,),) = service.client.ledger.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'celery-ledger closing'"
        )
        return int(count)

    with durable(Celery("closing", set_as_current=False), settings) as app:
        app.send_task("test.add", [1, 1])
        assert connections() == 1
    service.until(lambda: connections() == 0, what="Postgres sees that the app is gone")

    with durable(Celery("closing", set_as_current=False), settings):
        pass
    assert connections() == 0  # one that was never used opens none to close


def test_cancelling_a_running_job_drops_its_result_and_ends_its_child(service: Service) -> None:
    service.worker("prefork", 2)
    job_id = service.enqueue("test.hold", service.log, service.gate)
    service.until(lambda: bool(service.ran("start")))
    service.client.cancel(job_id, "not wanted")
    assert service.client.job(job_id).state is State.CANCELLED
    # the child is terminated after a grace, and its place serves on
    others = service.enqueue_many("test.note", 2, service.log)
    assert service.all_ended(others) == {State.SUCCEEDED: 2}
    service.until(lambda: service.client.job(job_id).state is State.CANCELLED)
    held = service.enqueue_many("test.hold", 2, service.log, service.gate)
    service.running(held)  # both places are free again
    service.open_gate()
    assert service.all_ended(held) == {State.SUCCEEDED: 2}
    assert service.client.job(job_id).state is State.CANCELLED


def test_a_rejected_and_an_ignored_job_come_to_an_end(service: Service, app: Any) -> None:
    service.keeper()
    service.worker("prefork", 2)
    again = app.send_task("test.reject", [service.log, True])
    assert again.get(timeout=20) == "at last"
    assert [a.outcome for a in service.ended(again.id).attempts] == ["released"]
    gone = service.ended(app.send_task("test.reject", [service.log, False]).id)
    assert (gone.state, gone.error) == (State.FAILED, "rejected by the task: not now")
    ignored = service.ended(app.send_task("test.ignore").id)
    assert (ignored.state, ignored.result) == (State.SUCCEEDED, None)


def test_children_that_are_recycled_lose_no_result(service: Service) -> None:
    service.keeper()
    service.worker("prefork", 2, "--max-tasks-per-child", "1")
    ids = service.enqueue_many("test.note", 12, service.log)
    assert service.all_ended(ids) == {State.SUCCEEDED: 12}
    assert len(service.ran("ran")) == 12
    assert all(not job.attempts for job in service.client.summary(ids))


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_nothing_is_claimed_ahead_of_a_free_slot(service: Service, pool: str) -> None:
    service.worker(pool, 2)
    ids = service.enqueue_many("test.sleep", 30, service.log, 0.05)
    most = 0
    while len(service.ran("end")) < 30:
        most = max(most, service.client.counts(ids).get(State.RUNNING, 0))
        # A finished job reads as running until its end is committed, a moment later.
        unfinished = len(service.ran("start")) - len(service.ran("end"))
        assert unfinished <= 2
    assert 0 < most <= 2 + 2


def test_a_revoke_with_no_worker_there_is_not_forgotten(service: Service, app: Any) -> None:
    # Given a job that waits, and no worker that could hear of a revoke
    waiting = app.send_task("test.note", [service.log])
    app.control.revoke(waiting.id)
    assert service.client.job(waiting.id).state is State.CANCELLED
    # When there is one
    service.worker()
    after = service.enqueue("test.add", 1, 1)
    assert service.ended(after).state is State.SUCCEEDED
    # Then the job has not run
    assert service.ran("ran") == []
