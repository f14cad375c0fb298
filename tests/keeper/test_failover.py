"""Failovers to a standby that lags, and steps of a running server's clock: real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests import servers
from tests.conftest import migrated
from tests.keeper.conftest import posted
from tests.ledger import given
from tests.proxy import Proxy, proxied
from tests.standby import Standby, await_replay
from tests.stepping import SteppingPostgres, library
from worker.broker.doorbells import ring_of
from worker.jobs.job import Enqueued, Fence
from worker.jobs.states import State
from worker.keeper.boot import boot_time
from worker.keeper.corrector import Corrector
from worker.keeper.dispatcher import Dispatcher
from worker.keeper.keeper import Post
from worker.keeper.rescuer import Rescuer
from worker.keeper.ringer import Ringer
from worker.ledger.claim import claim
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership
from worker.ledger.lease import held, renew
from worker.ledger.read import read
from worker.settings import Settings
from worker.stack.postgres import PostgresServer

HOUR = 3600.0


@dataclass
class Pair:
    """A primary behind a proxy, its standby, and a keeper's post by way of the proxy."""

    post: Post
    primary: PostgresServer
    standby: Standby
    front: Proxy
    stream: Proxy

    def lag(self) -> None:
        """Let the standby have all that is there, and nothing of what comes."""
        await_replay(self.primary, self.standby)
        self.stream.refuse()

    def fail_over(self) -> None:
        """The primary is gone, and what the standby had not received with it; one statement
        bridges it."""
        self.primary.kill()
        self.standby.promote()
        self.front.lead_to(self.standby.url)
        self.post.ledger.execute("SELECT 1")


@pytest.fixture
def pair(settings_for: Callable[..., Settings]) -> Iterator[Pair]:
    with (
        servers.folder(servers.memory()) as folder,
        servers.postgres(servers.memory()) as primary,
        proxied(migrated(primary).url) as front,
        proxied(primary.url) as stream,
    ):
        standby = Standby(primary, folder / "standby", source=stream.url)
        standby.start()
        settings = settings_for(database_url=front.url, lease_seconds=1, ring_grace_seconds=0.1)
        try:
            for post in posted(settings):
                yield Pair(post, primary, standby, front, stream)
        finally:
            standby.kill()


def watched(post: Post) -> Rescuer:
    """A rescuer that has watched for long."""
    rescuer = Rescuer()
    rescuer.run(post)
    rescuer._watching_since = boot_time() - 600
    return rescuer


def popped(post: Post) -> list[str]:
    items = post.doorbells.pop(["celery"], 100)
    return [ring.id for item in items if (ring := ring_of(item.list, item.entry))]


def test_after_a_failover_to_a_lagging_standby_nobody_is_rescued_in_haste(pair: Pair) -> None:
    # Given a keeper that has watched for long, a worker that lives and one that dies; of the
    # living one's renewals, and of what a third one has claimed, the standby has nothing
    post = pair.post
    living, dying = given.running(post.ledger, "a"), given.running(post.ledger, "b")
    given.expire(post.ledger, living.lease, dying.lease)
    pair.lag()
    renew(post.ledger, living.lease, 600)
    rescuer = watched(post)

    # When the standby is promoted, so that every lease looks expired
    pair.fail_over()
    rescuer.run(post)

    # Then nothing is taken before the living one could renew
    assert given.state_of(post.ledger, "a") is given.state_of(post.ledger, "b") is State.RUNNING
    assert renew(post.ledger, living.lease, 600)
    given.until(lambda: rescuer.run(post) or given.state_of(post.ledger, "b") is State.QUEUED)
    assert given.state_of(post.ledger, "a") is State.RUNNING


def test_what_a_failover_has_lost_is_recorded_once_and_held_by_nobody(pair: Pair) -> None:
    # Given a standby that misses: a job; a claim; an end; a lease with its claim; a second attempt
    post = pair.post
    lease = given.lease(post.ledger, 600)
    given.enqueued(post.ledger, "unclaimed", "leaseless")
    (unended,) = given.claimed(post.ledger, "unended", lease_id=lease)
    (first,) = given.claimed(post.ledger, "again", lease_id=lease)
    pair.lag()
    answers = enqueue(post.ledger, [given.job("lost")])
    post.ring([one.ring for one in answers if isinstance(one, Enqueued) and one.ring])
    (lost_claim,) = claim(post.ledger, lease, ["unclaimed"])
    assert finish(post.ledger, [given.success(unended.fence, b"1")]).granted
    late = given.lease(post.ledger, 600)
    (under_late,) = claim(post.ledger, late, ["leaseless"])
    finish(post.ledger, [dataclasses.replace(given.retry(first.fence), state=State.QUEUED)])
    (second,) = claim(post.ledger, lease, ["again"])
    assert second.fence == Fence("again", 2, lease)

    pair.fail_over()

    # Then the job's doorbell rings for nobody
    assert popped(post) == ["lost"]
    assert not claim(post.ledger, lease, ["lost"])
    assert read(post.ledger, "lost") is None
    # The lost lease cannot be renewed, and what it claimed is rung for
    assert not renew(post.ledger, late, 600)
    assert not finish(post.ledger, [given.success(under_late.fence)]).granted
    given.age(post.ledger, "dispatched_at", 60, "unclaimed", "leaseless")
    Ringer().run(post)
    assert sorted(popped(post)) == ["leaseless", "unclaimed"]
    # An attempt whose number comes again under another lease records nothing
    other = given.lease(post.ledger, 600)
    (again,) = claim(post.ledger, other, ["unclaimed"])
    assert again.fence.attempt == lost_claim.fence.attempt
    assert not finish(post.ledger, [given.success(lost_claim.fence, b"old")]).granted
    assert finish(post.ledger, [given.success(again.fence, b"new")]).granted
    assert given.job_of(post.ledger, "unclaimed").result == b"new"
    # What runs by the ledger and not by the worker is what its reconciliation gives back
    assert held(post.ledger, lease) == {("unended", 1), ("again", 1)}
    assert not finish(post.ledger, [given.success(second.fence)]).granted
    # New numbers are above those of every row that is left
    ((highest,),) = post.ledger.execute("SELECT max(dispatch_seq) FROM ledger.jobs")
    (new,) = enqueue(post.ledger, [given.job()])
    assert isinstance(new, Enqueued)
    assert new.ring
    assert new.ring.seq > highest


def test_a_servers_clock_that_steps_stops_no_duty(
    settings_for: Callable[..., Settings],
) -> None:
    if library() is None:
        pytest.skip("needs libfaketime to step a server's clock: apt-get install faketime")
    with servers.folder(servers.memory()) as folder:
        server = SteppingPostgres(folder / "postgres", options=servers.POSTGRES_OPTIONS)
        server.start()
        try:
            settings = settings_for(
                database_url=migrated(server).url, lease_seconds=1, ring_grace_seconds=0.1
            )
            for post in posted(settings):
                _steps_stop_no_duty(server, post)
        finally:
            server.kill()


def _steps_stop_no_duty(server: SteppingPostgres, post: Post) -> None:
    # Given a worker that dies, one that lives, a lost doorbell, a countdown, and a leader that dies
    ledger = post.ledger
    corrector, rescuer = Corrector(), watched(post)
    corrector.run(post)
    dead = given.running(ledger, "dead", lease_id=given.lease(ledger, 1))
    living = given.running(ledger, "living", lease_id=given.lease(ledger, 1))
    given.enqueued(ledger, "rung")
    given.enqueued(ledger, "soon", delay=1)
    given.enqueued(ledger, "short", expires=1, delay=HOUR)
    Leadership("keeper", "tests", 5).take(ledger)

    # When the clock steps back
    server.step_to(-HOUR)

    # Then nobody is rescued in haste, and the one that lives keeps its job
    rescuer.run(post)
    assert given.state_of(ledger, "dead") is State.RUNNING
    assert Leadership("keeper", "next", 5).take(ledger)
    assert Leadership("keeper", "tests", 5).take(ledger) is False
    Leadership("keeper", "next", 5).resign(ledger)
    assert post.leadership.take(ledger)
    assert renew(ledger, living.lease, 600)
    given.until(lambda: rescuer.run(post) or given.state_of(ledger, "dead") is State.QUEUED)
    assert given.state_of(ledger, "living") is State.RUNNING
    assert not renew(ledger, dead.lease, 1)

    # And what waits is found in its time
    corrector.run(post)
    given.until(lambda: Dispatcher().run(post) or given.state_of(ledger, "soon") is State.QUEUED)
    given.until(lambda: Ringer().run(post) or "rung" in popped(post))

    # When it steps ahead, to where it was and an hour more, nobody is rescued in haste either
    assert renew(ledger, living.lease, 600)
    server.step_to(HOUR)
    rescuer.run(post)
    assert given.state_of(ledger, "living") is State.RUNNING
    assert post.leadership.take(ledger)
    assert renew(ledger, living.lease, 600)
    until = boot_time() + 1.5
    given.until(lambda: rescuer.run(post) or boot_time() > until)
    assert given.state_of(ledger, "living") is State.RUNNING
