from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import redis
from sqlalchemy import text

from tests.keeper.conftest import posted
from tests.ledger import given
from worker.broker.doorbells import Doorbells, Popped, ring_of
from worker.errors import LeaseLost, LedgerUnavailable
from worker.jobs.continuations import CALL_ERRBACKS
from worker.jobs.job import Enqueued, Ring
from worker.jobs.states import State
from worker.keeper import rescuer as rescuer_module
from worker.keeper import restorer as restorer_module
from worker.keeper import ringer as ringer_module
from worker.keeper.boot import boot_time
from worker.keeper.cleaner import Cleaner, Expirer
from worker.keeper.dispatcher import Dispatcher
from worker.keeper.duties import all_duties
from worker.keeper.keeper import Duty, Post
from worker.keeper.rescuer import Rescuer
from worker.keeper.restorer import Restorer
from worker.keeper.ringer import Ringer
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.read import read, read_list
from worker.settings import Settings
from worker.stack.postgres import PostgresServer
from worker.stack.redis import RedisServer


def popped(post: Post, queue: str = "celery") -> list[str]:
    items: list[Popped] = post.doorbells.pop([queue], 100)
    return [ring.id for item in items if (ring := ring_of(item.list, item.entry))]


def enqueue_and_ring(post: Post, *ids: str) -> None:
    answers = enqueue(post.ledger, [given.job(job_id) for job_id in ids])
    post.ring([a.ring for a in answers if isinstance(a, Enqueued) and a.ring])


def grow_old(post: Post, *ids: str) -> None:
    given.age(post.ledger, "dispatched_at", 30, *ids)


def keep_until(duty: Duty, post: Post, condition: Callable[[], object]) -> None:
    """Let the duty be done as the keeper does it, until something is so."""

    def look() -> bool:
        duty.run(post)
        return bool(condition())

    given.until(look)


# The dispatcher


def test_the_dispatcher_rings_for_what_is_due(post: Post) -> None:
    given.enqueued(post.ledger, "due", "later", delay=600)
    given.make_due(post.ledger, "due")

    assert not Dispatcher().run(post)

    assert popped(post) == ["due"]
    assert given.state_of(post.ledger, "later") is State.SCHEDULED


def test_the_dispatcher_rings_after_the_commit(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given somebody who looks into the ledger as soon as the doorbell rings
    given.enqueued(post.ledger, "a", delay=600)
    given.make_due(post.ledger, "a")
    seen: list[State] = []
    real = Doorbells.ring

    def ring(bells: Doorbells, rings: Sequence[Ring]) -> None:
        seen.append(given.state_of(post.ledger, "a"))
        real(bells, rings)

    monkeypatch.setattr(Doorbells, "ring", ring)

    Dispatcher().run(post)

    assert seen == [State.QUEUED]


def test_a_dispatch_stands_when_redis_is_away(
    settings_for: Callable[..., Settings], own_redis: RedisServer
) -> None:
    # Given a keeper whose Redis is away
    settings = settings_for(redis_url=own_redis.url, ring_grace_seconds=0.1)
    for post in posted(settings):
        given.enqueued(post.ledger, "a", delay=600)
        given.make_due(post.ledger, "a")
        own_redis.stop()

        # When it dispatches
        Dispatcher().run(post)

        # Then the job is queued, and is rung for once Redis is back
        assert given.state_of(post.ledger, "a") is State.QUEUED
        assert Ringer().run(post) is False
        own_redis.start()
        grow_old(post, "a")
        Ringer().run(post)
        assert popped(post) == ["a"]


# The ringer


def test_the_ringer_rings_for_what_a_flush_lost(post: Post, redis_url: str) -> None:
    # Given jobs whose doorbells Redis forgot
    enqueue_and_ring(post, "a", "b")
    grow_old(post, "a", "b")
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()

    # When the ringer looks
    Ringer().run(post)

    # Then both are rung for, once
    assert popped(post) == ["a", "b"]


def test_a_redis_that_can_be_read_and_not_written_ends_the_round(
    settings_for: Callable[..., Settings],
    own_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a whole batch of lost doorbells, and a full Redis
    monkeypatch.setattr(ringer_module, "BATCH", 2)
    with redis.Redis.from_url(own_redis.url) as client:
        for post in posted(settings_for(redis_url=own_redis.url)):
            given.enqueued(post.ledger, "a", "b")
            grow_old(post, "a", "b")
            client.config_set("maxmemory", 1)

            # Then nothing more is done at once: each round would write the same rows again
            assert Ringer().run(post) is False

            # When it takes them again, what was not pushed is
            client.config_set("maxmemory", 0)
            grow_old(post, "a", "b")
            assert Ringer().run(post) is True
            assert popped(post) == ["a", "b"]


def test_the_ringer_leaves_alone_what_still_waits_in_its_list(post: Post) -> None:
    enqueue_and_ring(post, "a", "b")
    grow_old(post, "a", "b")

    for _ in range(3):
        Ringer().run(post)

    assert popped(post) == ["a", "b"]


def test_the_ringer_rings_for_what_was_popped_and_never_claimed(post: Post) -> None:
    # Given a worker that popped the first of three doorbells and died
    enqueue_and_ring(post, "a", "b", "c")
    grow_old(post, "a", "b", "c")
    assert [item.entry for item in post.doorbells.pop(["celery"], 1)]

    # When the ringer looks, more than once
    Ringer().run(post)
    Ringer().run(post)

    # Then that one is rung for again, behind the others
    assert popped(post) == ["b", "c", "a"]


def test_the_ringer_looks_behind_foreign_entries(post: Post, redis_url: str) -> None:
    enqueue_and_ring(post, "a", "b")
    grow_old(post, "a", "b")
    post.doorbells.pop(["celery"], 1)
    with redis.Redis.from_url(redis_url) as client:
        client.rpush("celery", b"foreign")  # next to be popped

    Ringer().run(post)

    assert popped(post) == ["b", "a"]


def test_the_ringer_gives_a_worker_time_to_claim(post: Post) -> None:
    enqueue_and_ring(post, "a")
    post.doorbells.pop(["celery"], 1)
    given.age(post.ledger, "dispatched_at", -30, "a")

    Ringer().run(post)

    assert popped(post) == []


def test_each_list_is_looked_at_by_itself(post: Post, redis_url: str) -> None:
    given.enqueued(post.ledger, "a", queue="q", priority=9)
    given.enqueued(post.ledger, "b", queue="p")
    grow_old(post, "a", "b")

    Ringer().run(post)

    assert (popped(post, "q\x06\x169"), popped(post, "p")) == (["a"], ["b"])


def test_a_list_that_is_refused_keeps_no_other_from_being_rung(
    post: Post, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a queue whose name is a key that is no list, and another one that sorts after it
    given.enqueued(post.ledger, "a", queue="bad")
    given.enqueued(post.ledger, "b", queue="good")
    grow_old(post, "a", "b")
    with redis.Redis.from_url(redis_url) as client:
        client.set("bad", "no list")
        ringer = Ringer()

        # When the ringer looks, again and again
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                ringer.run(post)

        # Then the other is rung for, and the fault is told once
        assert popped(post, "good") == ["b"]
        assert len([r for r in caplog.records if "cannot be rung" in r.message]) == 1

        # And once the key is gone, it is rung for too, and a new fault is told again
        client.delete("bad")
        ringer.run(post)
        assert popped(post, "bad") == ["a"]
        grow_old(post, "a")
        client.set("bad", "no list")
        ringer.run(post)
        assert len([r for r in caplog.records if "cannot be rung" in r.message]) == 2


def test_a_dispatch_rings_every_list_but_the_refused_one(post: Post, redis_url: str) -> None:
    given.enqueued(post.ledger, "a", queue="bad", delay=600)
    given.enqueued(post.ledger, "b", queue="good", delay=600)
    given.make_due(post.ledger, "a", "b")
    with redis.Redis.from_url(redis_url) as client:
        client.set("bad", "no list")

    Dispatcher().run(post)

    assert popped(post, "good") == ["b"]


# The rescuer


def test_the_rescuer_counts_the_machines_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine that slept for an hour: Postgres's clock went on
    clocks = {time.CLOCK_BOOTTIME: 3700.0, time.CLOCK_MONOTONIC: 100.0}
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)

    assert boot_time() == 3700.0


def poison_at_once(post: Post, body: bytes) -> None:
    """Job `a` with `body` is at its limit, and its worker is gone."""
    given.running(post.ledger, "a")
    post.ledger.execute(
        "UPDATE ledger.jobs SET body = :body, lost = 99 WHERE id = 'a'", {"body": body}
    )
    post.ledger.execute("DELETE FROM ledger.workers")


class Watch:
    """A rescuer on a clock of its own, which goes on with its rounds and else stands still."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self.rescuer, self.clock = Rescuer(), 1000.0

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.rescuer.run(self._post)
            self.clock += Rescuer.every


@pytest.fixture
def watch(post: Post, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A rescuer that has watched for more than two leases."""
    made = Watch(post)
    monkeypatch.setattr(rescuer_module, "boot_time", lambda: made.clock)
    made.rounds(10)
    return made


def watched_for_long() -> Rescuer:
    rescuer = Rescuer()
    rescuer._watching_since = boot_time() - 600
    rescuer._last = boot_time()
    return rescuer


POISON = "poison: 99 attempts were lost with their process"
CHAIN = json.dumps([[], {}, {"chain": [
    {"task": "tests.last", "options": {"task_id": "last"}},
    {"task": "tests.next", "options": {"task_id": "next"}},
]}]).encode()  # fmt: skip


def test_the_later_steps_of_a_condemned_job_end_with_it(post: Post) -> None:
    # Given the first step of a chain, which keeps killing its worker
    poison_at_once(post, CHAIN)

    # When it is condemned
    watched_for_long().run(post)

    # Then whoever waits for a later step is told, and what to look at
    assert given.state_of(post.ledger, "a") is State.FAILED
    for step in ("next", "last"):
        job = given.job_of(post.ledger, step)
        assert (job.state, job.task, job.parent_id) == (State.FAILED, f"tests.{step}", "a")
        assert job.error == f"job a, which it was to follow, failed: {POISON}"


def test_the_errbacks_of_a_condemned_job_are_called_by_a_job_that_is_rung_for(post: Post) -> None:
    errback = {"task": "tests.told", "args": [], "options": {}}
    poison_at_once(post, json.dumps([[1], {}, {"errbacks": [errback]}]).encode())

    watched_for_long().run(post)

    (call,) = read_list(post.ledger, task=CALL_ERRBACKS)
    assert (call.state, call.queue, call.parent_id) == (State.QUEUED, "celery", "a")
    # And for the condemned job itself, so that a worker of the app hears of its end
    assert popped(post) == [call.id, "a"]


def test_a_condemned_job_with_a_broken_body_stops_no_rescue(post: Post) -> None:
    poison_at_once(post, b"\xff\x00 no JSON")

    watched_for_long().run(post)

    assert given.state_of(post.ledger, "a") is State.FAILED


def test_the_rescuer_first_watches_for_a_whole_lease(post: Post) -> None:
    # Given a lease that expired before this keeper came
    fence = given.running(post.ledger, "a")
    given.expire(post.ledger, fence.lease)
    rescuer, began = Rescuer(), time.monotonic()

    # When it keeps looking
    keep_until(rescuer, post, lambda: given.state_of(post.ledger, "a") is State.QUEUED)

    # Then it rescued, and not before it had watched for one lease
    assert time.monotonic() - began >= post.settings.lease_seconds


def test_the_rescuer_starts_over_after_a_gap(post: Post, watch: Watch) -> None:
    # Given a rescuer that has watched for long, and then was stopped for a while
    fence = given.running(post.ledger, "a")
    given.expire(post.ledger, fence.lease)
    watch.clock += 60

    # Then it holds back for a lease
    for _ in range(4):
        watch.rounds()
        assert given.state_of(post.ledger, "a") is State.RUNNING
    watch.rounds()
    assert given.state_of(post.ledger, "a") is State.QUEUED


def test_the_rescuer_starts_over_after_an_outage(
    post: Post, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = given.running(post.ledger, "a")
    given.expire(post.ledger, fence.lease)

    def away(ledger: object, steady: object) -> float:
        raise LedgerUnavailable("Postgres is not available.")

    with monkeypatch.context() as outage:
        outage.setattr(rescuer_module, "look_at", away)
        with pytest.raises(LedgerUnavailable):
            watch.rounds()

    watch.rounds()

    assert given.state_of(post.ledger, "a") is State.RUNNING


def test_the_rescuer_starts_over_when_only_its_table_was_locked(post: Post, watch: Watch) -> None:
    # Given a lease that expires while nobody gets at the workers' table, as in a VACUUM FULL
    fence = given.running(post.ledger, "a")
    given.expire(post.ledger, fence.lease)
    hurried = Ledger(post.settings.database_url.get_secret_value(), connect_timeout=0.25)
    with post.ledger.transaction() as connection:
        connection.execute(text("LOCK TABLE ledger.workers"))
        with pytest.raises(LedgerUnavailable):
            watch.rescuer.run(replace(post, ledger=hurried))
    hurried.close()

    # When it is free again
    watch.clock += Rescuer.every
    watch.rounds()

    # Then its worker has a lease's time to renew
    assert given.state_of(post.ledger, "a") is State.RUNNING


def test_after_a_restart_of_postgres_nobody_is_rescued_in_haste(
    settings_for: Callable[..., Settings], own_postgres: PostgresServer, redis_url: str
) -> None:
    # Given a keeper that has watched for long, and a worker's lease that ends in an outage
    settings = settings_for(database_url=own_postgres.url, lease_seconds=5)
    for post in posted(settings):
        rescuer = Rescuer()
        rescuer.run(post)
        rescuer._watching_since = boot_time() - 600  # it has watched for ten minutes
        rescuer._last = boot_time() + 600  # without a gap
        fence = given.running(post.ledger, "a")
        given.expire(post.ledger, fence.lease)
        own_postgres.restart()
        post.ledger.execute("SELECT 1")  # the connection is up again: no gap is seen

        # When it looks right after the restart
        rescuer.run(post)

        # Then it gives the worker a lease's time to renew, because this Postgres is a new one
        assert given.state_of(post.ledger, "a") is State.RUNNING


def test_a_worker_that_renews_in_time_is_not_rescued(post: Post) -> None:
    from worker.ledger.lease import renew

    fence = given.running(post.ledger, "a")
    given.expire(post.ledger, fence.lease)
    rescuer, began = Rescuer(), time.monotonic()
    rescuer.run(post)
    renew(post.ledger, fence.lease, 600)

    keep_until(rescuer, post, lambda: time.monotonic() - began > 1.5)

    assert given.state_of(post.ledger, "a") is State.RUNNING


def test_a_pod_that_dies_is_rescued_together_and_accuses_what_ran_alone(
    post: Post, watch: Watch
) -> None:
    # Given a worker and its isolated process, which died together under a job that ran alone
    own = given.running(post.ledger, "own", lease_id=given.lease(post.ledger, pod="host:1"))
    isolated = given.lease(post.ledger, pod="host:1", isolated=True)
    given.running(post.ledger, "guilty", lease_id=isolated)
    post.ledger.execute("UPDATE ledger.jobs SET suspicion = 2 WHERE id = 'guilty'")

    # When one lease is over, and the other one a third of a lease later
    given.expire(post.ledger, own.lease)
    post.ledger.execute(
        "UPDATE ledger.workers SET renewed_at = clock_timestamp() - interval '400 s',"
        " expires_at = clock_timestamp() + interval '200 s' WHERE isolated"
    )
    for _ in range(2):
        watch.rounds()
        assert given.state_of(post.ledger, "own") is State.RUNNING
    given.expire(post.ledger, isolated)
    watch.rounds()

    # Then both are rescued, and the loss counts for the one
    jobs = [given.job_of(post.ledger, job_id) for job_id in ("own", "guilty")]
    assert [(job.state, job.lost) for job in jobs] == [(State.QUEUED, 0), (State.QUEUED, 1)]


# The others


def test_the_restorer_puts_back_what_was_never_adopted(
    post: Post, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.lpush("celery", b"foreign")
        post.doorbells.pop(["celery"], 1)

        Restorer().run(post)
        assert client.llen("celery") == 0  # a worker may still be about to adopt it
        monkeypatch.setattr(restorer_module, "VISIBILITY_SECONDS", 0)
        Restorer().run(post)
        assert client.llen("celery") == 1


def test_the_cleaner_drops_what_is_past_its_time(post: Post) -> None:
    finish(post.ledger, [given.success(given.running(post.ledger, "a"))])
    Cleaner().run(post)
    assert read(post.ledger, "a") is not None
    given.age(post.ledger, "finished_at", 8 * 86400, "a")

    assert not Cleaner().run(post)

    assert read(post.ledger, "a") is None


def test_the_expirer_cancels_what_was_not_started_in_its_time(post: Post) -> None:
    given.enqueued(post.ledger, "a", expires=60)
    given.age(post.ledger, "expires_at", 120, "a")

    assert not Expirer().run(post)

    assert given.state_of(post.ledger, "a") is State.CANCELLED


@pytest.mark.parametrize("duty", [Dispatcher, Ringer, Expirer, Cleaner], ids=lambda d: d.__name__)
def test_a_duty_that_lost_the_lead_changes_nothing(post: Post, duty: type[Duty]) -> None:
    given.enqueued(post.ledger, "due", delay=600)
    given.enqueued(post.ledger, "lost", expires=600)
    given.make_due(post.ledger, "due")
    grow_old(post, "lost")
    given.age(post.ledger, "expires_at", 1200, "lost")
    post.leadership.resign(post.ledger)

    with pytest.raises(LeaseLost):
        duty().run(post)

    assert given.state_of(post.ledger, "due") is State.SCHEDULED
    assert given.state_of(post.ledger, "lost") is State.QUEUED


def test_the_keeper_has_every_duty_once() -> None:
    names = [type(duty).__name__ for duty in all_duties()]

    assert sorted(names) == sorted(set(names))
    assert {
        "Dispatcher",
        "Ringer",
        "Rescuer",
        "Restorer",
        "Expirer",
        "Cleaner",
        "Corrector",
    } <= set(names)
