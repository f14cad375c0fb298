from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import text

from tests.ledger import given
from tests.proxy import Proxy
from worker.errors import Conflict, LedgerUnavailable, MalformedId
from worker.jobs.job import Enqueued, Finish, Message, NewJob, Ring
from worker.jobs.states import State
from worker.ledger import together
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.faults import NotDone, Refused
from worker.ledger.insert import insert
from worker.ledger.read import counts
from worker.ledger.together import GroupCommit


class Interrupted(BaseException):
    """What no `except Exception` stops, as KeyboardInterrupt and a soft time limit."""


class Callers:
    """Threads that each enqueue one job, in the order in which they are told to."""

    def __init__(self, group: GroupCommit, pool: ThreadPoolExecutor) -> None:
        self.group = group
        self._pool = pool

    def call(self, job: NewJob) -> Future[Enqueued]:
        return self._pool.submit(self.group.enqueue, job)

    def stand_in_line(self, *jobs: NewJob) -> list[Future[Enqueued]]:
        """One caller behind the other, while somebody commits."""
        calls = []
        for job in jobs:
            before = len(self.group._line._waiting)
            calls.append(self.call(job))
            given.until(lambda before=before: len(self.group._line._waiting) > before)  # type: ignore[misc] # a lambda's default
        return calls


def answers(calls: Sequence[Future[Enqueued]]) -> list[Enqueued]:
    return [call.result(given.PATIENCE) for call in calls]


def transactions(ledger: Ledger) -> int:
    """In how many transactions the jobs were inserted."""
    (row,) = ledger.execute("SELECT count(DISTINCT xmin::text) AS count FROM ledger.jobs")
    return int(row.count)


def jobs_named(names: str) -> list[NewJob]:
    return [given.job(name) for name in names]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(60) as pool:
        yield pool


@pytest.fixture
def callers(ledger: Ledger, pool: ThreadPoolExecutor) -> Callers:
    return Callers(GroupCommit(ledger), pool)


@pytest.fixture
def orderly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody in line loses patience, however long a test holds up who commits."""
    monkeypatch.setattr(together, "TURN", 2 * given.PATIENCE)


@pytest.fixture
def door(open_ledger: Callable[..., Ledger]) -> Ledger:
    """A connection for what holds up others."""
    return open_ledger()


@contextmanager
def held(door: Ledger) -> Iterator[None]:
    """Whoever inserts a job waits in the midst of it until the block ends."""
    with door.transaction() as connection:
        connection.execute(text("LOCK TABLE ledger.jobs IN SHARE MODE"))
        yield


@contextmanager
def first_one_held(
    callers: Callers, ledger: Ledger, door: Ledger
) -> Iterator[list[Future[Enqueued]]]:
    """One caller, in the midst of its commit until the block ends."""
    with held(door):
        calls = [callers.call(given.job("first"))]
        given.until(lambda: given.waits_for_a_lock(ledger))
        yield calls


def committing(monkeypatch: pytest.MonkeyPatch, instead: Callable[..., object]) -> None:
    """Let `instead` commit a batch; it is given what the group commit gives."""
    monkeypatch.setattr(together, "enqueue", instead)


def test_a_lone_caller_commits_at_once_alone_and_in_its_own_thread(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[tuple[int, int]] = []

    def commit(door: Ledger, jobs: Sequence[NewJob]) -> object:
        commits.append((len(jobs), threading.get_ident()))
        return enqueue(door, jobs)

    committing(monkeypatch, commit)
    monkeypatch.setattr(together, "TURN", "nobody waits so long")
    group = GroupCommit(ledger)

    found = [group.enqueue(job) for job in jobs_named("ab")]

    assert all(answer.created and answer.ring for answer in found)
    assert commits == [(1, threading.get_ident())] * 2
    assert transactions(ledger) == 2


@pytest.mark.usefixtures("orderly")
def test_those_who_come_during_a_commit_share_the_next_one(
    ledger: Ledger, door: Ledger, pool: ThreadPoolExecutor
) -> None:
    # Given a caller in the midst of its commit, and twenty that come meanwhile
    rung: list[list[str]] = []
    group = GroupCommit(ledger, lambda rings: rung.append([ring.id for ring in rings]))
    callers = Callers(group, pool)
    names = [f"j{number:02}" for number in range(20)]
    with first_one_held(callers, ledger, door) as calls:
        calls += callers.stand_in_line(*map(given.job, names))

    # When it is done
    found = answers(calls)

    # Then all of them were committed at once, and so were their doorbells
    assert [answer.id for answer in found] == ["first", *names]
    assert all(answer.created and answer.ring for answer in found)
    assert transactions(ledger) == 2
    assert rung == [["first"], names]


@pytest.mark.usefixtures("orderly")
def test_the_next_commit_begins_before_the_bells_of_this_one_have_rung(
    ledger: Ledger, door: Ledger, pool: ThreadPoolExecutor
) -> None:
    # Given a Redis that takes its time for the first doorbell
    answered = threading.Event()

    def ring(rings: Sequence[Ring]) -> None:
        if rings[0].id == "first":
            assert answered.wait(given.PATIENCE)

    callers = Callers(GroupCommit(ledger, ring), pool)
    with first_one_held(callers, ledger, door) as calls:
        others = callers.stand_in_line(*jobs_named("ab"))

    # Then it delays nobody else's answer
    assert [answer.id for answer in answers(others)] == ["a", "b"]
    assert not calls[0].done()
    answered.set()
    assert answers(calls)[0].created


@pytest.mark.parametrize("bad", [{"task": "\0"}, {"priority": 1 << 40}, {"priority": object()}])
@pytest.mark.usefixtures("orderly")
def test_what_postgres_refuses_fails_alone(
    callers: Callers, ledger: Ledger, door: Ledger, bad: dict[str, object]
) -> None:
    # Given seven callers in line, of whom one brings what cannot be
    jobs = jobs_named("abcdefg")
    jobs[3] = replace(jobs[3], **bad)  # type: ignore[arg-type] # by name
    with first_one_held(callers, ledger, door):
        calls = callers.stand_in_line(*jobs)

    # Then it alone is told so
    refused = calls.pop(3).exception(given.PATIENCE)
    assert isinstance(refused, Exception) and not isinstance(refused, LedgerUnavailable)
    assert isinstance(refused, Refused) or "priority" not in bad or bad["priority"] != 1 << 40
    assert [answer.id for answer in answers(calls) if answer.created] == list("abcefg")
    assert counts(ledger) == {State.QUEUED: 7}


@pytest.mark.usefixtures("orderly")
def test_a_key_that_is_held_up_fails_its_own_caller_only(
    ledger: Ledger, door: Ledger, open_ledger: Callable[..., Ledger], pool: ThreadPoolExecutor
) -> None:
    # Given two keys in a transaction that lasts longer than a statement may
    callers = Callers(GroupCommit(open_ledger(connections=4, timeout=0.5)), pool)
    with door.transaction() as connection:
        insert(connection, [given.job("there", key="k"), given.job("too", key="l")])
        # When one caller waits for the first, and then three together, one of them for the second
        first = callers.call(given.job(None, key="k"))
        given.until(lambda: given.waits_for_a_lock(ledger))
        held_up = given.job(None, key="l")
        before, waits, after = callers.stand_in_line(given.job("a"), held_up, given.job("b"))

        # Then those beside it are served
        assert [answer.id for answer in answers([before, after])] == ["a", "b"]
        assert isinstance(first.exception(given.PATIENCE), NotDone)
        assert isinstance(waits.exception(given.PATIENCE), NotDone)


def test_an_id_that_cannot_be_stops_its_own_caller_only(callers: Callers, ledger: Ledger) -> None:
    with pytest.raises(MalformedId):
        callers.group.enqueue(replace(given.job(), id="a\0b"))

    assert callers.group.enqueue(given.job("a")).created


@pytest.mark.usefixtures("orderly")
def test_a_conflict_is_raised_to_its_own_caller(
    callers: Callers, ledger: Ledger, door: Ledger
) -> None:
    given.enqueued(ledger, "b")
    with first_one_held(callers, ledger, door):
        calls = callers.stand_in_line(given.job("a"), given.job("b", 2), given.job("c"))

    assert isinstance(calls.pop(1).exception(given.PATIENCE), Conflict)
    assert [answer.id for answer in answers(calls)] == ["a", "c"]


@pytest.mark.usefixtures("orderly")
def test_fifty_callers_with_one_key_make_one_job(
    callers: Callers, ledger: Ledger, door: Ledger
) -> None:
    with first_one_held(callers, ledger, door):
        calls = callers.stand_in_line(*[given.job(None, 1, key="k") for _ in range(50)])

    found = answers(calls)
    assert len({answer.id for answer in found}) == 1
    assert sum(answer.created for answer in found) == 1
    assert sum(answer.ring is not None for answer in found) == 1
    assert counts(ledger) == {State.QUEUED: 2} and transactions(ledger) == 2


def test_fifty_callers_with_one_key_at_once_make_one_job(callers: Callers, ledger: Ledger) -> None:
    jobs = [given.job(None, 1, key="k") for _ in range(50)]

    found = given.all_at_once([lambda job=job: callers.group.enqueue(job) for job in jobs])  # type: ignore[misc] # a lambda's default

    assert len({answer.id for answer in found}) == 1
    assert sum(answer.created for answer in found) == 1
    assert counts(ledger) == {State.QUEUED: 1}


@pytest.mark.parametrize("second", [given.job("a", 1), given.job("a", 2), given.job("b", 2)])
@pytest.mark.usefixtures("orderly")
def test_one_batch_answers_as_if_its_jobs_had_come_one_by_one(
    callers: Callers, ledger: Ledger, door: Ledger, second: NewJob
) -> None:
    # Given two jobs with one key, or one id, or both
    jobs = [given.job("a", 1, key="k"), replace(second, key="k" if second.id == "b" else "l")]
    with first_one_held(callers, ledger, door):
        calls = callers.stand_in_line(*jobs)
    given.until(lambda: all(call.done() for call in calls))

    # Then one of them is there as it was sent, its key included, and its caller has made it
    made = [job for job, call in zip(jobs, calls, strict=True) if not call.exception()]
    created = [call.result() for call in calls if not call.exception() and call.result().created]
    kept = given.job_of(ledger, created[0].id)
    assert len(created) == 1
    assert (kept.key, kept.message.body) == (made[0].key, made[0].message.body)
    # And the other one is told of it, or of the conflict
    is_repeat = jobs[0].fingerprint == jobs[1].fingerprint
    assert len(made) == 1 + is_repeat
    assert is_repeat or any(isinstance(call.exception(), Conflict) for call in calls)


@pytest.mark.usefixtures("orderly")
def test_a_message_that_is_awaited_and_comes_twice_is_a_repeat(
    callers: Callers, ledger: Ledger, door: Ledger
) -> None:
    fence = given.running(ledger, "a")
    awaited = Finish(fence, State.SCHEDULED, "replaced", delay=float("inf"))
    from worker.ledger.finish import finish

    finish(ledger, [awaited])
    with first_one_held(callers, ledger, door):
        calls = callers.stand_in_line(given.job("a", 2), given.job("a", 2))

    assert [answer.created for answer in answers(calls)] == [True, False]
    assert given.state_of(ledger, "a") is State.QUEUED


@pytest.mark.usefixtures("orderly")
def test_a_batch_is_bounded_by_a_number(
    callers: Callers, ledger: Ledger, door: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "BATCH", 3)

    with first_one_held(callers, ledger, door) as calls:
        calls += callers.stand_in_line(*jobs_named("abcdefg"))

    assert all(answer.created for answer in answers(calls))
    assert transactions(ledger) == 1 + 3


@pytest.mark.usefixtures("orderly")
def test_a_batch_is_bounded_in_bytes(callers: Callers, ledger: Ledger, door: Ledger) -> None:
    large = [replace(job, message=Message("{}", bytes(6 << 20))) for job in jobs_named("abcde")]

    with first_one_held(callers, ledger, door) as calls:
        calls += callers.stand_in_line(*large)

    assert all(answer.created for answer in answers(calls))
    assert transactions(ledger) == 1 + 3


@pytest.mark.usefixtures("orderly")
def test_all_are_told_that_postgres_is_away(
    ledger: Ledger,
    door: Ledger,
    proxy: Proxy,
    open_ledger: Callable[..., Ledger],
    pool: ThreadPoolExecutor,
) -> None:
    # Given a caller in the midst of its commit, and five in line
    callers = Callers(GroupCommit(open_ledger(proxy.url, connections=4)), pool)
    with first_one_held(callers, ledger, door) as calls:
        calls += callers.stand_in_line(*jobs_named("abcde"))
        # When the network breaks
        proxy.refuse()
        faults = [call.exception(given.PATIENCE) for call in calls]

    # Then each of them is told, by an exception of its own
    assert all(isinstance(fault, LedgerUnavailable) for fault in faults), faults
    assert len(set(map(id, faults))) == 6
    # And the next ones are served when it is back
    proxy.heal()
    assert callers.group.enqueue(given.job("after")).created
    assert callers.group.enqueue(given.job("b")).created


@pytest.mark.parametrize("fault", [Interrupted, ZeroDivisionError])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("orderly")
def test_who_is_interrupted_while_it_commits_leaves_nobody_waiting(
    callers: Callers,
    ledger: Ledger,
    door: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    fault: type[BaseException],
    when: str,
) -> None:
    # Given four callers in line, of whom the one who commits is interrupted, or meets a bug
    def commit(door: Ledger, jobs: Sequence[NewJob]) -> object:
        if len(jobs) < 4:
            return enqueue(door, jobs)
        if when == "after":
            enqueue(door, jobs)
        raise fault

    committing(monkeypatch, commit)
    with first_one_held(callers, ledger, door):
        calls = callers.stand_in_line(*jobs_named("abcd"))
    given.until(lambda: all(call.done() for call in calls))

    # Then that one alone knows of an interrupt, and nobody of a bug
    faults = [call.exception() for call in calls if call.exception()]
    assert [type(one) for one in faults] == [fault] * (fault is Interrupted)
    others = [call for call in calls if not call.exception()]
    assert {answer.created for answer in answers(others)} == {when == "before"}
    # And the next one need not wait
    assert callers.group.enqueue(given.job("e")).created


@pytest.mark.usefixtures("orderly")
def test_bells_that_fail_change_no_answer_but_that_of_who_rang_them(
    ledger: Ledger, door: Ledger, pool: ThreadPoolExecutor
) -> None:
    def ring(rings: Sequence[Ring]) -> None:
        if len(rings) > 1:
            raise ZeroDivisionError("a bug")

    callers = Callers(GroupCommit(ledger, ring), pool)
    with first_one_held(callers, ledger, door):
        calls = callers.stand_in_line(*jobs_named("abc"))

    assert isinstance(calls.pop(0).exception(given.PATIENCE), ZeroDivisionError)
    assert [answer.created for answer in answers(calls)] == [True, True]


@pytest.mark.usefixtures("orderly")
def test_who_is_interrupted_in_line_takes_its_job_along(
    callers: Callers, ledger: Ledger, door: Ledger
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    def kill() -> None:
        given.until(lambda: callers.group._line._waiting)
        os.kill(os.getpid(), signal.SIGUSR1)

    usual = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with first_one_held(callers, ledger, door) as calls:
            # Given this thread in line
            killer = threading.Thread(target=kill)
            killer.start()
            # When it is interrupted
            with pytest.raises(Interrupted):
                callers.group.enqueue(given.job("mine"))
            given.join([killer])
            calls += callers.stand_in_line(given.job("a"))
    finally:
        signal.signal(signal.SIGUSR1, usual)

    # Then nobody enqueues its job
    assert [answer.id for answer in answers(calls)] == ["first", "a"]
    assert counts(ledger) == {State.QUEUED: 2}


def test_a_commit_that_is_held_up_holds_up_no_other(
    callers: Callers, ledger: Ledger, door: Ledger
) -> None:
    # Given a key in somebody else's transaction, and a caller that waits for it
    with door.transaction() as connection:
        insert(connection, [given.job("there", 1, key="k")])
        waiting = callers.call(given.job(None, 1, key="k"))
        given.until(lambda: given.waits_for_a_lock(ledger))

        # Then others wait for their turn at the most
        assert [callers.group.enqueue(job).id for job in jobs_named("ab")] == ["a", "b"]
        assert not waiting.done()

    assert waiting.result(given.PATIENCE) == Enqueued("there", False, None)


def test_a_caller_does_not_wait_for_itself(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a caller whose signal handler enqueues in the midst of its commit
    group = GroupCommit(ledger)

    def commit(door: Ledger, jobs: Sequence[NewJob]) -> object:
        if jobs[0].id == "a":
            assert group.enqueue(given.job("handler's")).created
        return enqueue(door, jobs)

    committing(monkeypatch, commit)

    assert group.enqueue(given.job("a")).created
    assert counts(ledger) == {State.QUEUED: 2}


def test_who_is_told_nothing_at_last_commits_by_itself(
    callers: Callers, ledger: Ledger, door: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a caller that took the job of another one, and never comes back from its commit
    monkeypatch.setattr(together, "TURN", 2.0)
    monkeypatch.setattr(together, "ABANDONED", 0.05)
    back = threading.Event()

    def commit(door: Ledger, jobs: Sequence[NewJob]) -> object:
        if len(jobs) > 1:
            assert back.wait(given.PATIENCE)
        return enqueue(door, jobs)

    committing(monkeypatch, commit)
    with first_one_held(callers, ledger, door):
        lost, found = callers.stand_in_line(*jobs_named("ab"))

    # Then the other one has its answer all the same
    assert found.result(given.PATIENCE).created
    back.set()
    assert lost.result(given.PATIENCE).created


@pytest.mark.usefixtures("orderly")
def test_a_child_of_a_fork_begins_anew(
    ledger: Ledger, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process in whose line one commits, one waits, and one holds the lock
    group, parent, go = GroupCommit(ledger), os.getpid(), threading.Event()
    inside = threading.Event()

    def commit(door: Ledger, jobs: Sequence[NewJob]) -> object:
        if os.getpid() == parent:
            inside.set()
            assert go.wait(given.PATIENCE)
        return enqueue(door, jobs)

    committing(monkeypatch, commit)
    callers = Callers(group, pool)
    calls = [callers.call(given.job("a"))]
    assert inside.wait(given.PATIENCE)
    calls += callers.stand_in_line(given.job("b"))
    locked = threading.Event()

    def hold() -> None:
        with group._line._lock:
            locked.set()
            assert go.wait(given.PATIENCE)

    pool.submit(hold)
    assert locked.wait(given.PATIENCE)

    # When it forks
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(given.PATIENCE))
        os._exit(0 if group.enqueue(given.job("child")).created else 1)
    _, status = os.waitpid(pid, 0)
    go.set()

    # Then the child's jobs wait for nobody, and the parent's are not lost
    assert status == 0
    assert [answer.id for answer in answers(calls)] == ["a", "b"]
    assert counts(ledger) == {State.QUEUED: 3}
