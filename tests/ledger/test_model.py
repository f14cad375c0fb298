"""Jobs, workers, a keeper and a Redis that do anything in any order, held against a model of them.

After every step the rows and the lists of Redis must be what the model says, and each answer what
it expected. Time passes by moving the times in the rows; a proxy swallows replies.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import hypothesis
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from tests.ledger import given
from tests.ledger.model import ALONE, LISTS, Lease, Lives, Model
from tests.proxy import Proxy
from worker.broker.doorbells import Doorbells, Popped, entry_of, ring_of
from worker.errors import Conflict, NotFound
from worker.jobs.job import Claim, Ended, Enqueued, Fence, Finish, Ring
from worker.jobs.states import State
from worker.keeper.keeper import Post
from worker.keeper.ringer import Ringer
from worker.ledger.change import cancel, replay
from worker.ledger.claim import adopt, claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due
from worker.ledger.ended import insert_ended
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership
from worker.ledger.lease import close_lease, held, renew
from worker.ledger.rescue import rescue
from worker.ledger.retention import expire_late
from worker.settings import Settings

#: Rounds of work after which everything must have ended: one for what is rung or held, one for
#: what was lost, one for what a rescue or a release of the first round brought back.
ROUNDS = 3


JOB_ROWS = text("SELECT * FROM ledger.jobs")
LEASE_ROWS = text("SELECT lease, expires_at > clock_timestamp() AS grants FROM ledger.workers")
ATTEMPT_ROWS = text("SELECT job_id, number, outcome FROM ledger.attempts")

JOBS = ["a", "b", "c", "d", "e"]
IDS = st.sampled_from(JOBS)
SOME = st.one_of(st.just(set(JOBS)), st.sets(IDS, min_size=1))
#: A worker's lease, counted from the newest: mostly one that is still used.
WHOSE = st.integers(0, 5)
RARELY = st.sampled_from([False, False, False, True])
MOSTLY = st.sampled_from([True, True, True, False])

#: The jobs that are there from the start.
STOCK: list[dict[str, Any]] = [{}, {"priority": 9}, {"expires": 600}, {"key": "k"}]

ENDS: dict[str, Callable[[Fence], Finish]] = {
    "succeed": lambda fence: given.success(fence, f"{fence.id} {fence.attempt}".encode()),
    "succeed too": lambda fence: given.success(fence),
    "fail": given.failure,
    "retry": given.retry,
    "retry at once": lambda fence: Finish(fence, State.QUEUED, "retried"),
    "replace": lambda fence: Finish(fence, State.SCHEDULED, "replaced", delay=math.inf),
    "postpone": lambda fence: Finish(fence, State.SCHEDULED, "postponed", delay=600),
    "release": lambda fence: Finish(fence, State.QUEUED, "released"),
    "revoke": lambda fence: Finish(fence, State.CANCELLED, "cancelled"),
    "lose": lambda fence: Finish(fence, State.QUEUED, "lost"),
    "lose for good": lambda fence: Finish(fence, State.FAILED, "lost"),
}


class LedgerMachine(RuleBasedStateMachine):
    """The real ledger and the real doorbells, and the model beside them."""

    def __init__(self, post: Post, flaky: Ledger, proxy: Proxy, client: redis.Redis) -> None:
        super().__init__()
        self.post, self.ledger, self.client = post, post.ledger, client
        self.flaky, self.proxy = flaky, proxy
        self.ledger.execute("DELETE FROM ledger.jobs")
        self.ledger.execute("DELETE FROM ledger.workers")
        self.client.flushdb()
        self.model = Model()
        self.highest = 0
        self.leases: list[str] = []
        #: Every fence that was ever granted: its holder may write at any time.
        self.fences: dict[tuple[str, int], Fence] = {}
        #: Those that their holder never heard of.
        self.unheard: set[Fence] = set()
        self.old_lists: dict[str, list[tuple[str, int]]] = {name: [] for name in LISTS}
        #: State, attempt and result of what had ended, and what was brought back in this step.
        self.final: dict[str, tuple[Any, ...]] = {}
        self.revived: set[str] = set()
        self.turn = False

    def door(self, lossy: bool) -> Ledger:
        """The ledger; if `lossy`, the reply to the next commit does not arrive."""
        self.proxy.heal()
        if not lossy:
            return self.ledger
        given.connected(self.flaky)
        self.proxy.drop_reply_after_next_commit()
        return self.flaky

    def lease(self, whose: int, *, isolated: bool | None = None) -> str:
        """One of the leases of every kind or of one, counted from the newest."""
        fit = [one for one in self.leases if isolated in (None, self.model.leases[one].isolated)]
        return fit[-1 - whose % len(fit)]

    # Producers

    @rule(
        job_id=IDS,
        number=st.sampled_from([1, 1, 1, 2]),
        priority=st.sampled_from([0, 9]),
        delay=st.sampled_from([None, None, 600.0]),
        expires=st.sampled_from([None, None, 600.0]),
        key=st.sampled_from([None, None, "k", "l"]),
        lossy=RARELY,
        rung=MOSTLY,
    )
    def enqueue(self, job_id: str, number: int, lossy: bool, rung: bool, **more: Any) -> None:
        new = given.job(job_id, number, **more)
        expected = self.model.insert(new)
        (answer,) = enqueue(self.door(lossy), [new])
        self.answered(answer, expected, lossy, rung)

    def answered(
        self,
        answer: Enqueued | Conflict,
        expected: tuple[str, bool] | None,
        lossy: bool,
        rung: bool,
    ) -> None:
        if expected is None:
            assert isinstance(answer, Conflict)
            return
        job_id, created = expected
        assert isinstance(answer, Enqueued) and answer.id == job_id
        if created:
            self.revived.add(job_id)
        if not lossy:  # the repeated enqueue finds what the first one created
            assert answer.created == created
            due = created and self.model.jobs[job_id].state is State.QUEUED
            assert (answer.ring is not None) == due
        self.ring([answer.ring] if answer.ring else [], rung)

    def ring(self, rings: Collection[Ring], rung: bool) -> None:
        """Push doorbells, unless they are lost on their way."""
        for one in sorted(rings, key=lambda one: one.list):
            job = self.model.jobs[one.id]
            assert one.list == job.list and one.seq > self.highest
            job.seq = one.seq
            if rung:
                self.model.lists[one.list].append((one.id, one.seq))
        if rung:
            self.post.ring(list(rings))

    @precondition(lambda self: self.model.ids(State.SCHEDULED, State.QUEUED, State.RUNNING))
    @rule(job_id=IDS, running=st.booleans(), lossy=RARELY)
    def cancel(self, job_id: str, running: bool, lossy: bool) -> None:
        def work(door: Ledger) -> None:
            cancel(door, job_id, "not wanted", running=running)

        expected = self.model.cancel(job_id, running)
        assert self.is_taken(work, lossy) == expected

    @precondition(lambda self: self.model.ids(State.FAILED, State.CANCELLED))
    @rule(job_id=IDS, lossy=RARELY, rung=MOSTLY)
    def replay(self, job_id: str, lossy: bool, rung: bool) -> None:
        rings: list[Ring] = []
        expected = self.model.replay(job_id)
        assert self.is_taken(lambda door: rings.append(replay(door, job_id)), lossy) == expected
        if expected:
            self.revived.add(job_id)
        self.ring(rings, rung)

    replay_too = replay

    def is_taken(self, work: Callable[[Ledger], object], lossy: bool) -> bool:
        try:
            work(self.door(lossy))
        except (Conflict, NotFound):
            return False
        return True

    @rule(job_id=IDS)
    def end_unrun(self, job_id: str) -> None:
        self.model.end_unrun(job_id)
        ended = [Ended(job_id, "tests.add", State.FAILED)]
        self.ledger.run(lambda connection: insert_ended(connection, ended))

    # Workers

    @initialize(limit=st.integers(1, 3))
    def begin(self, limit: int) -> None:
        self.model.limit = limit
        for isolated in (False, True, False):
            self.open(isolated, "one pod")
        for job_id, more in zip(JOBS, STOCK, strict=False):
            self.enqueue(job_id, 1, lossy=False, rung=True, **more)
            self.check()

    @precondition(lambda self: sum(one.grants for one in self.model.leases.values()) < 4)
    @rule(isolated=st.booleans(), pod=st.sampled_from([None, "one pod", "another"]))
    def open(self, isolated: bool, pod: str | None) -> None:
        self.leases.append(given.lease(self.ledger, isolated=isolated, pod=pod))
        self.model.leases[self.leases[-1]] = Lease(isolated, pod)

    @rule(whose=WHOSE, lossy=RARELY)
    def renew(self, whose: int, lossy: bool) -> None:
        self.renew_it(self.lease(whose), lossy)

    def renew_it(self, lease: str, lossy: bool = False) -> None:
        known = self.model.leases[lease]
        assert renew(self.door(lossy), lease, 600) == (known.lives is not Lives.GONE)
        if known.lives is not Lives.GONE:
            known.lives = Lives.RENEWED

    @rule(whose=WHOSE, falter=st.booleans())
    def fall_silent(self, whose: int, falter: bool) -> None:
        """Let a lease expire, or come close to it."""
        lease = self.lease(whose)
        if not falter:
            given.expire(self.ledger, lease)
        else:
            self.ledger.execute(
                "UPDATE ledger.workers SET renewed_at = clock_timestamp() - interval '400 s',"
                " expires_at = clock_timestamp() + interval '200 s' WHERE lease = :lease",
                {"lease": lease},
            )
        known = self.model.leases[lease]
        if known.lives is not Lives.GONE:
            known.lives = Lives.FALTERING if falter else Lives.EXPIRED

    @precondition(lambda self: self.model.ids(State.RUNNING))
    @rule(data=st.data(), accuse=MOSTLY, lossy=RARELY)
    def die(self, data: Any, accuse: bool, lossy: bool) -> None:
        """A worker that holds something dies, perhaps with another one, and is rescued."""
        holders = sorted({self.leases.index(self.fence(one).lease) for one in self.running()})
        for one in data.draw(st.sets(st.sampled_from(holders), min_size=1, max_size=2)):
            self.fall_silent(len(self.leases) - 1 - one, falter=False)
        self.rescue(accuse, lossy)

    def running(self) -> list[str]:
        return sorted(self.model.ids(State.RUNNING))

    @precondition(lambda self: self.model.ids(State.RUNNING))
    @rule(whose=WHOSE, lossy=RARELY)
    def close(self, whose: int, lossy: bool) -> None:
        lease = self.lease(whose)
        expected = self.model.close(lease)
        given_back = set(close_lease(self.door(lossy), lease))
        assert given_back == (set() if lossy else expected)

    @rule(whose=WHOSE, ids=SOME, lossy=RARELY, heard=MOSTLY)
    def claim(self, whose: int, ids: Collection[str], lossy: bool, heard: bool) -> None:
        """Claim by doorbells that come from anywhere, at any time."""
        lease = self.lease(whose, isolated=False)
        expected = self.model.claim(lease, ids)
        self.granted(claim(self.door(lossy), lease, sorted(ids)), expected, heard)

    @rule(whose=WHOSE, job_id=IDS, number=st.sampled_from([1, 1, 2]), lossy=RARELY)
    def adopt(self, whose: int, job_id: str, number: int, lossy: bool) -> None:
        new, lease = given.job(job_id, number), self.lease(whose, isolated=False)
        if (answer := self.model.insert(new)) and answer[1]:
            self.revived.add(job_id)
        expected = self.model.claim(lease, [job_id])
        self.granted(adopt(self.door(lossy), lease, [new]), expected)

    @precondition(lambda self: self.model.suspects())
    @rule(whose=WHOSE, most=st.integers(1, 3), idle=MOSTLY, lossy=RARELY)
    def claim_suspects(self, whose: int, most: int, idle: bool, lossy: bool) -> None:
        """Repeated after a lost reply it takes the next ones: renewals find the first ones."""
        lease = self.lease(whose, isolated=True)
        if lossy:
            for fence in sorted(self.model.claim_suspects(lease, most, idle), key=str):
                self.heard_of(fence, False)
        expected = self.model.claim_suspects(lease, most, idle)
        found = claim_suspects(self.door(lossy), lease, ["celery"], most, idle=idle)
        self.granted(found, expected)

    claim_suspects_too = claim_suspects  # a rule is chosen as often as it has names

    def fence(self, job_id: str) -> Fence:
        job = self.model.jobs[job_id]
        assert job.lease is not None
        return Fence(job_id, job.attempt, job.lease)

    def granted(self, claims: Collection[Claim], expected: set[Fence], heard: bool = True) -> None:
        assert {one.fence for one in claims} == expected
        assert len(claims) == len(expected)
        for fence in sorted(expected, key=str):  # by job: a set's order is not the same in each run
            self.heard_of(fence, heard)

    def heard_of(self, fence: Fence, heard: bool) -> None:
        """Nobody else was ever granted this attempt."""
        assert self.fences.setdefault((fence.id, fence.attempt), fence) == fence
        self.unheard = self.unheard - {fence} if heard else self.unheard | {fence}

    @precondition(lambda self: any(self.model.lists.values()))
    @rule(
        whose=WHOSE,
        most=st.integers(1, 3),
        fate=st.sampled_from(["claimed", "claimed", "lost", "given back", "doubled"]),
    )
    def fetch(self, whose: int, most: int, fate: str) -> None:
        """Pop doorbells and claim, unless the worker dies or Postgres is away in between."""
        popped = self.pop(most)
        if fate in ("claimed", "doubled"):
            self.claim(whose, {entry[0] for _, entry in popped}, lossy=False, heard=True)
        if fate in ("given back", "doubled"):
            back = [
                Popped(name, entry_of(Ring(job_id, name, seq)).encode(), "")
                for name, (job_id, seq) in popped
            ]
            self.post.doorbells.give_back(back)
            for name, entry in reversed(popped):
                self.model.lists[name].insert(0, entry)

    def pop(self, most: int) -> list[tuple[str, tuple[str, int]]]:
        expected = [(name, entry) for name in LISTS for entry in self.model.lists[name]][:most]
        for name, entry in expected:
            self.model.lists[name].remove(entry)
        popped = [ring_of(item.list, item.entry) for item in self.post.doorbells.pop(LISTS, most)]
        assert [(one.list, (one.id, one.seq)) for one in popped if one] == expected
        return expected

    @precondition(lambda self: self.fences)
    @rule(data=st.data(), late=RARELY, lossy=RARELY, rung=MOSTLY)
    def finish(self, data: Any, late: bool, lossy: bool, rung: bool) -> None:
        """Write how attempts ended: by their holders, or, `late`, by anybody who ever was one."""
        running = {self.fence(one) for one in self.model.ids(State.RUNNING)} - self.unheard
        pool = sorted(running, key=str) if running and not late else list(self.fences.values())
        fences = data.draw(
            st.lists(st.sampled_from(pool), min_size=1, max_size=5, unique_by=lambda one: one.id)
        )
        ends = [ENDS[data.draw(st.sampled_from(list(ENDS)))](fence) for fence in fences]
        if ends[0].outcome == "succeeded" and data.draw(st.booleans()):
            link = given.job(data.draw(IDS), 1)
            ends[0] = given.success(fences[0], ends[0].result or b"", outbox=(link,))
        self.write(ends, lossy, rung)

    finish_too = finish_again = finish

    def write(self, ends: list[Finish], lossy: bool = False, rung: bool = True) -> None:
        before = {one for one, job in self.model.jobs.items() if job.state.is_final}
        granted, rings = self.model.finish(ends)
        self.revived |= before & rings  # a link that was to come after all
        done = finish(self.door(lossy), ends)
        assert done.granted == granted
        told = {one.id for one in done.rings}
        # What was committed by the statement whose reply was lost is not told again.
        assert told <= rings if lossy else told == rings
        self.ring(done.rings, rung)

    @precondition(lambda self: self.unheard)
    @rule()
    def reconcile(self) -> None:
        """Each renewal compares what runs under the lease with what its worker knows of."""
        for lease in self.leases:
            runs = {Fence(*one, lease) for one in held(self.ledger, lease)}
            assert runs == {self.fence(one) for one in self.model.held_by(lease)}
            if forgotten := runs & self.unheard:
                self.write([Finish(one, State.QUEUED, "released") for one in forgotten])

    # The keeper

    @precondition(
        lambda self: any(one.lives is Lives.EXPIRED for one in self.model.leases.values())
    )
    @rule(accuse=MOSTLY, lossy=RARELY)
    def rescue(self, accuse: bool, lossy: bool) -> None:
        leases, queued, poisoned = self.model.rescue(accuse)
        done = rescue(self.door(lossy), None, self.model.limit, accuse=accuse)
        if not lossy:
            assert (done.leases, set(done.queued), set(done.poisoned)) == (leases, queued, poisoned)
        for one in self.model.ids(State.RUNNING):
            lease = self.model.leases[self.fence(one).lease]
            assert lease.grants or lease.pod is not None  # it waits for its pod's other one

    @precondition(lambda self: self.model.ids(State.SCHEDULED))
    @rule(ids=SOME, lossy=RARELY, rung=MOSTLY)
    def dispatch(self, ids: Collection[str], lossy: bool, rung: bool) -> None:
        due = {one for one in self.model.ids(State.SCHEDULED) if not self.model.jobs[one].awaits}
        due &= set(ids)
        given.make_due(self.ledger, *due)
        for one in due:
            self.model.jobs[one].queue()
        rings = dispatch_due(self.door(lossy), None)
        assert {one.id for one in rings} == (set() if lossy else due)
        self.ring(rings, rung)

    @precondition(lambda self: any(one.expires for one in self.model.jobs.values()))
    @rule(ids=SOME, sweep=st.booleans())
    def expire_jobs(self, ids: Collection[str], sweep: bool) -> None:
        self.ledger.execute(
            "UPDATE ledger.jobs SET expires_at = clock_timestamp() - interval '1 s'"
            " WHERE expires_at IS NOT NULL AND id = ANY(:ids)",
            {"ids": list(ids)},
        )
        for one in set(ids) & self.model.jobs.keys():
            self.model.jobs[one].late = self.model.jobs[one].expires
        if sweep:
            expected = self.model.expire_late()
            assert expire_late(self.ledger, None).count == expected

    @precondition(lambda self: self.model.ids(State.QUEUED))
    @rule()
    def ring_again(self) -> None:
        """The ringer's round, long after the last dispatch."""
        given.age(self.ledger, "dispatched_at", 99999, *self.model.jobs)
        expected = {name: self.model.unrung(name) for name in LISTS}
        Ringer().run(self.post)
        for name, lost in expected.items():
            known = self.model.lists[name]
            rung = self.entries(name)[len(known) :]
            assert sorted(job_id for job_id, _ in rung) == sorted(lost)
            for job_id, seq in rung:
                assert seq > self.highest
                self.model.jobs[job_id].seq = seq
            known += rung
            # What waits has its doorbell, or one before it in its list that will be popped first.
            assert not self.model.unrung(name) - {job_id for job_id, _ in known}

    # Redis

    @precondition(lambda self: any(self.model.lists.values()))
    @rule(
        fault=st.sampled_from(["flush", "double", "keep", "restore"]),
        name=st.sampled_from(LISTS),
        which=st.integers(0, 3),
    )
    def redis_forgets_or_repeats(self, fault: str, name: str, which: int) -> None:
        lists = self.model.lists
        if fault == "keep":
            self.old_lists = {name: list(entries) for name, entries in lists.items()}
        elif fault == "double" and (entries := lists[name]):
            self.push(name, entries[which % len(entries)])
        elif fault in ("flush", "restore"):
            self.client.flushdb()
            self.model.lists = {name: [] for name in LISTS}
            for name, entries in self.old_lists.items() if fault == "restore" else ():
                for entry in entries:
                    self.push(name, entry)

    def push(self, name: str, entry: tuple[str, int]) -> None:
        self.client.lpush(name, entry_of(Ring(entry[0], name, entry[1])))
        self.model.lists[name].append(entry)

    def entries(self, name: str) -> list[tuple[str, int]]:
        found: list[Any] = self.client.lrange(name, 0, -1)
        rings = [ring_of(name, entry) for entry in reversed(found)]
        return [(one.id, one.seq) for one in rings if one]

    # After each step

    @invariant()
    def check(self) -> None:
        with self.ledger.transaction() as connection:
            rows = {row.id: row for row in connection.execute(JOB_ROWS)}
            leases = {row.lease: row.grants for row in connection.execute(LEASE_ROWS)}
            ended: defaultdict[str, dict[int, str]] = defaultdict(dict)
            for row in connection.execute(ATTEMPT_ROWS):
                ended[row.job_id][row.number] = row.outcome
        self.every_job_is_as_the_model_says(rows)
        self.every_lease_is_as_the_model_says(leases)
        self.an_end_is_the_end_until_somebody_revives_it(rows)
        for job_id, job in self.model.jobs.items():
            # Every attempt that ended otherwise than well left its row.
            assert ended[job_id] == job.ended
            running = {job.attempt} if job.state is State.RUNNING else set()
            assert job.ended.keys() | job.unnoted | running == set(range(1, job.attempt + 1))
        assert {name: self.entries(name) for name in LISTS} == self.model.lists

    def every_job_is_as_the_model_says(self, rows: dict[str, Any]) -> None:
        assert rows.keys() == self.model.jobs.keys()
        for job_id, job in self.model.jobs.items():
            row = rows[job_id]
            assert told(row) == told(job, poison=job.poison), job_id
            if job.state is State.QUEUED and job.seq is None:
                assert row.dispatch_seq > self.highest
                job.seq = row.dispatch_seq
            elif job.state is State.QUEUED:
                assert row.dispatch_seq == job.seq
        self.highest = max([self.highest, *(row.dispatch_seq or 0 for row in rows.values())])

    def every_lease_is_as_the_model_says(self, leases: dict[str, bool]) -> None:
        known = self.model.leases.items()
        there = {one: lease for one, lease in known if lease.lives is not Lives.GONE}
        assert leases == {one: lease.grants for one, lease in there.items()}
        for lease_id, lease in known:
            # Who must run alone does, and only an isolated process runs suspects.
            runs = [self.model.jobs[one].suspicion for one in self.model.held_by(lease_id)]
            assert len(runs) <= 1 or ALONE not in runs
            assert all(bool(one) == lease.isolated for one in runs)

    def an_end_is_the_end_until_somebody_revives_it(self, rows: dict[str, Any]) -> None:
        now = {
            row.id: (row.state, row.attempt, row.result, row.error, row.finished_at)
            for row in rows.values()
            if State(row.state).is_final
        }
        for job_id, end in self.final.items():
            assert job_id in self.revived or now.get(job_id) == end
        self.final, self.revived = now, set()

    @invariant()
    def nobody_writes_with_half_a_fence(self) -> None:
        running = [self.fence(one) for one in self.model.ids(State.RUNNING)]
        old = [Fence(one.id, one.attempt - 1, one.lease) for one in running]
        strange = [Fence(one.id, one.attempt, "somebody else's") for one in running]
        self.turn = not self.turn
        if running:
            ends = [given.success(one) for one in (old if self.turn else strange)]
            assert finish(self.ledger, ends).granted == set()

    # In the end

    def teardown(self) -> None:
        """Whatever happened, what was accepted comes to its end in a few rounds of work."""
        if self.leases:
            for _ in range(ROUNDS):
                if not all(job.state.is_final for job in self.model.jobs.values()):
                    self.work_a_round()
            assert all(job.state.is_final for job in self.model.jobs.values())
            for fence in self.fences.values():
                self.write([given.success(fence, b"from the grave")])
            self.check()

    def work_a_round(self) -> None:
        self.open(False, None)
        self.open(True, None)
        for job_id in [one for one, job in self.model.jobs.items() if job.awaits]:
            self.enqueue(job_id, 1, lossy=False, rung=False)
        self.dispatch(self.model.jobs, lossy=False, rung=False)
        self.expire_jobs([], sweep=True)
        self.check()
        for lease, known in self.model.leases.items():
            if known.lives is Lives.FALTERING:
                self.renew_it(lease)
        self.rescue(accuse=False, lossy=False)
        self.reconcile()
        self.end_well()
        self.ring_again()
        self.claim(0, {entry[0] for _, entry in self.pop(1000)}, lossy=False, heard=True)
        self.end_well()
        while self.model.suspects():
            self.claim_suspects(0, 3, idle=True, lossy=False)
            assert self.model.ids(State.RUNNING)
            self.end_well()

    def end_well(self) -> None:
        running = self.model.ids(State.RUNNING)
        if running:
            self.write([given.success(self.fence(one)) for one in running])
        self.check()


def told(one: Any, *, poison: bool | None = None) -> tuple[Any, ...]:
    """What a row, or the model, says of a job."""
    if poison is None:
        poison = (one.error or "").startswith("poison")
    result = None if one.result is None else bytes(one.result)
    return one.state, one.list, one.attempt, one.lost, one.suspicion, one.lease, result, poison


def test_whatever_happens_the_ledger_and_the_lists_are_what_the_model_says(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger], settings: Settings
) -> None:
    leadership = Leadership("keeper", "tests", 6000)
    assert leadership.take(ledger)
    url = settings.redis_url.get_secret_value()
    post = Post(ledger, Doorbells(url), leadership, settings)
    flaky = open_ledger(proxy.url)
    with redis.Redis.from_url(url) as client:
        run_state_machine_as_test(
            lambda: LedgerMachine(post, flaky, proxy, client),  # type: ignore[arg-type] # it calls what it is given
            settings=hypothesis.settings(
                max_examples=25,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )
    post.doorbells.close()
