"""Whoever makes a job final, what was to follow it ends in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from tests.ledger import given
from tests.proxy import Proxy
from worker.errors import Conflict
from worker.jobs.continuations import CALL_ERRBACKS
from worker.jobs.job import Ended, Fence, Finish, Message, NewJob
from worker.jobs.states import State
from worker.ledger import batches as batches_module
from worker.ledger import ended as ended_module
from worker.ledger.bulk import cancel_batch
from worker.ledger.change import cancel, replay
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due
from worker.ledger.ended import insert_ended
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.read import read, read_list
from worker.ledger.rescue import rescue
from worker.ledger.retention import expire_late
from worker.ledger.revoke import revoke
from worker.ledger.writer import Writer


def step(job_id: str, **options: Any) -> dict[str, Any]:
    """A later step, as Celery writes one into a message."""
    return {"task": f"tests.{job_id}", "args": [], "kwargs": {},
            "options": {"task_id": job_id, **options}, "subtask_type": None}  # fmt: skip


ERRBACK = {"task": "tests.told", "args": [], "kwargs": {}, "options": {}}
#: A chain's first step: two steps follow it, the last of which stands first, and an errback.
EMBED = {"chain": [step("last"), step("next", queue="slow")], "errbacks": [ERRBACK]}


def first(job_id: str = "a", embed: Any = EMBED, args: Sequence[Any] = (), **more: Any) -> NewJob:
    body = json.dumps([list(args), {}, embed]).encode()
    return replace(given.job(job_id, **more), message=Message("{}", body))


def running(ledger: Ledger, job: NewJob | None = None) -> Fence:
    enqueue(ledger, [job or first()])
    (one,) = claim(ledger, given.lease(ledger), [(job or first()).id])
    return one.fence


def finished(state: State, outcome: str, **more: Any) -> Callable[[Ledger], object]:
    return lambda ledger: finish(ledger, [Finish(running(ledger), state, outcome, **more)])


def cancelled_while(state: State) -> Callable[[Ledger], object]:
    def move(ledger: Ledger) -> None:
        if state is State.RUNNING:
            running(ledger)
        else:
            enqueue(ledger, [first(delay=60 if state is State.SCHEDULED else None)])
        assert given.state_of(ledger, "a") is state
        cancel(ledger, "a", "no")

    return move


def cancelled_with_others(ledger: Ledger) -> None:
    enqueue(ledger, [first()])
    assert cancel_batch(ledger, ["a"], [State.QUEUED], "no") == 1


def expired(ledger: Ledger) -> None:
    enqueue(ledger, [first(expires=60)])
    given.age(ledger, "expires_at", 99, "a")
    expire_late(ledger, None)


def rescued_too_often(ledger: Ledger) -> None:
    given.expire(ledger, running(ledger).lease)
    rescue(ledger, None, 1)


def refused(ledger: Ledger) -> None:
    end = given.success(running(ledger), b"1", children="\0")  # which Postgres cannot hold
    written: list[Any] = []
    writer = Writer(ledger, lambda *told: written.append(told))
    writer.start()
    writer.put(end)
    assert writer.flush(given.PATIENCE)
    writer.stop()


FAILED, CANCELLED = State.FAILED, State.CANCELLED
#: Who makes a job final, how it ends, how what follows it does, and whether errbacks are called.
MOVES: dict[str, tuple[Callable[[Ledger], object], State, State, bool]] = {
    "failed, lost with its child": (finished(FAILED, "lost", error="x"), FAILED, FAILED, True),
    "failed, errbacks called": (
        finished(FAILED, "failed", error="x", errbacks_done=True), FAILED, FAILED, False),
    "failed by sys.exit": (finished(FAILED, "failed", error="x"), FAILED, FAILED, True),
    "revoked": (finished(CANCELLED, "cancelled", error="x"), CANCELLED, CANCELLED, False),
    "ignored": (finished(State.SUCCEEDED, "ignored"), State.SUCCEEDED, CANCELLED, False),
    "cancelled while scheduled": (
        cancelled_while(State.SCHEDULED), CANCELLED, CANCELLED, False),
    "cancelled while queued": (cancelled_while(State.QUEUED), CANCELLED, CANCELLED, False),
    "cancelled while running": (cancelled_while(State.RUNNING), CANCELLED, CANCELLED, False),
    "cancelled with others": (cancelled_with_others, CANCELLED, CANCELLED, False),
    "expired": (expired, CANCELLED, CANCELLED, False),
    "poison": (rescued_too_often, FAILED, FAILED, True),
    "a refused result": (refused, FAILED, FAILED, True),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_what_follows_ends_with_every_final_move(ledger: Ledger, name: str) -> None:
    move, state, after, called = MOVES[name]

    # When the first step of a chain ends in this way
    move(ledger)

    # Then its later steps have ended, each with its task, its queue and the reason
    job = given.job_of(ledger, "a")
    assert job.state is state
    for later, queue in (("next", "slow"), ("last", "")):
        row = given.job_of(ledger, later)
        assert (row.state, row.task, row.queue) == (after, f"tests.{later}", queue)
        assert (row.parent_id, row.root_id) == ("a", job.root_id)
        assert (row.error or "").startswith("job a, which it was to follow, ")
        assert (job.error or "Ignore") in (row.error or "")

    # and who fails has its errbacks called, once, by a job of its queue that is ready
    calls = read_list(ledger, task=CALL_ERRBACKS)
    assert [(call.state, call.queue, call.parent_id) for call in calls] == (
        [(State.QUEUED, "celery", "a")] if called else []
    )
    assert ledger.execute("SELECT id FROM ledger.jobs WHERE run_at = 'infinity'") == []


def test_a_return_is_followed_by_its_outbox_alone(ledger: Ledger) -> None:
    finish(ledger, [given.success(running(ledger), outbox=(given.job("next"),))])

    assert given.state_of(ledger, "next") is State.QUEUED
    assert read(ledger, "last") is None


def test_a_failures_exception_is_that_of_the_later_steps(ledger: Ledger) -> None:
    end = given.failure(running(ledger), result=b"{}", result_type="json", traceback="Trace")

    finish(ledger, [end])

    row = given.job_of(ledger, "last")
    assert (row.result, row.result_type, row.traceback) == (b"{}", "json", "Trace")


@pytest.mark.parametrize("by", ["a producer", "a finish"])
def test_what_was_to_follow_a_job_revoked_before_it_was_sent_is_cancelled(
    ledger: Ledger, by: str
) -> None:
    # Given a chain's step that was revoked before anybody sent it
    revoke(ledger, "a", "no", running=False)

    # When it is sent
    if by == "a producer":
        enqueue(ledger, [first()])
    else:
        finish(ledger, [given.success(running(ledger, given.job("z")), outbox=(first(),))])

    # Then its later steps will never come
    for job_id in ("a", "next", "last"):
        assert given.state_of(ledger, job_id) is State.CANCELLED
    assert given.job_of(ledger, "last").parent_id == "a"


def test_what_was_to_follow_a_step_whose_id_is_taken_fails(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")  # another job, with the id of a chain's step

    finish(ledger, [given.success(running(ledger, given.job("z")), outbox=(first(),))])

    assert given.state_of(ledger, "z") is State.SUCCEEDED
    assert given.state_of(ledger, "a") is State.QUEUED
    row = given.job_of(ledger, "last")
    assert (row.state, "belongs to another job" in (row.error or "")) == (State.FAILED, True)


# What was replaced by a canvas


def replaced(ledger: Ledger, *steps: NewJob) -> None:
    """A job `r`, with a chain of its own, replaced by jobs of a canvas."""
    fence = running(ledger, first("r", {"chain": [step("after r")], "errbacks": [ERRBACK]}))
    finish(ledger, [Finish(fence, State.SCHEDULED, "replaced", delay=float("inf"), outbox=steps)])
    assert given.state_of(ledger, "r") is State.SCHEDULED


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_what_waits_for_its_replacement_ends_with_it_and_so_does_its_own_chain(
    ledger: Ledger, end: str
) -> None:
    # Given a job that waits for the last step of its replacement
    replaced(ledger, first("bad", {"chain": [step("r")], "errbacks": [ERRBACK]}))

    # When a step of that ends badly
    if end == "fails":
        (one,) = claim(ledger, given.lease(ledger), ["bad"])
        finish(ledger, [given.failure(one.fence)])
    else:
        cancel(ledger, "bad", "no")

    # Then it ends, and what was to follow it, and the errbacks are called once
    state = State.FAILED if end == "fails" else State.CANCELLED
    assert given.state_of(ledger, "r") is given.state_of(ledger, "after r") is state
    assert given.job_of(ledger, "after r").parent_id == "bad"
    assert len(read_list(ledger, task=CALL_ERRBACKS)) == (end == "fails")


def test_a_replayed_step_of_a_replacement_brings_what_was_replaced_after_all(
    ledger: Ledger,
) -> None:
    # Given a job that ended because a step of its replacement failed
    replaced(ledger, first("bad", {"chain": [step("r")]}))
    (one,) = claim(ledger, given.lease(ledger), ["bad"])
    finish(ledger, [given.failure(one.fence)])

    # When that step is replayed, and returns
    replay(ledger, "bad")
    (again,) = claim(ledger, given.lease(ledger), ["bad"])
    last = first("r", {"chain": [step("after r")]})
    finish(ledger, [given.success(again.fence, outbox=(last,))])

    # Then it runs with the message that it waited for, and what follows it comes too
    assert given.state_of(ledger, "r") is State.QUEUED
    (one,) = claim(ledger, given.lease(ledger), ["r"])
    finish(ledger, [given.success(one.fence, outbox=(given.job("after r"),))])
    assert given.state_of(ledger, "after r") is State.QUEUED


@pytest.mark.parametrize("was", ["waits for its replacement", "a later step", "cancelled"])
def test_what_comes_after_all_with_a_countdown_waits_for_its_time(ledger: Ledger, was: str) -> None:
    # Given a job that awaits its message from the step before it
    before = first("before", {"chain": [step("r")]})
    if was == "waits for its replacement":
        replaced(ledger, before)
        (one,) = claim(ledger, given.lease(ledger), ["before"])
    else:
        fence = running(ledger, before)
        finish(ledger, [given.failure(fence)] if was == "a later step" else [])
        if was == "cancelled":
            cancel(ledger, "before", "no")
        replay(ledger, "before")
        (one,) = claim(ledger, given.lease(ledger), ["before"])

    # When that step returns, and the message has a countdown
    done = finish(ledger, [given.success(one.fence, outbox=(given.job("r", delay=600),))])

    # Then it waits for that
    assert not done.rings
    assert given.state_of(ledger, "r") is State.SCHEDULED
    given.make_due(ledger, "r")
    assert [ring.id for ring in dispatch_due(ledger, None)] == ["r"]


def test_what_was_replaced_and_then_cancelled_does_not_come_back(ledger: Ledger) -> None:
    replaced(ledger, first("goes on", {"chain": [step("r")]}))
    cancel(ledger, "r", "no")

    (one,) = claim(ledger, given.lease(ledger), ["goes on"])
    finish(ledger, [given.success(one.fence, outbox=(first("r", {}, ["last"]),))])

    assert given.state_of(ledger, "r") is State.CANCELLED


def test_cancelling_what_was_replaced_ends_its_own_chain(ledger: Ledger) -> None:
    replaced(ledger, given.job("goes on"))

    cancel(ledger, "r", "no")

    assert given.state_of(ledger, "after r") is State.CANCELLED
    assert given.state_of(ledger, "goes on") is State.QUEUED


# Chords


def unlock(job_id: str = "u") -> NewJob:
    """The job that waits for the header of a chord in a chain."""
    body = {**step("body", chain=[step("last")]), "subtask_type": None}
    body["options"] |= {"link_error": [ERRBACK], "queue": "slow"}
    nothing = dict.fromkeys(("chain", "callbacks", "errbacks", "chord"))
    return first(job_id, nothing, ["group", body], task="celery.chord_unlock")


def test_a_chords_body_ends_when_the_job_that_waits_for_its_header_does(ledger: Ledger) -> None:
    enqueue(ledger, [unlock()])

    cancel(ledger, "u", "no")

    body, last = given.job_of(ledger, "body"), given.job_of(ledger, "last")
    assert (body.state, body.task, body.queue) == (State.CANCELLED, "tests.body", "slow")
    assert last.state is State.CANCELLED
    assert read_list(ledger, task=CALL_ERRBACKS) == []


def test_a_poisoned_chord_fails_its_body_and_calls_the_bodys_errbacks(ledger: Ledger) -> None:
    fence = running(ledger, unlock())
    given.expire(ledger, fence.lease)

    done = rescue(ledger, None, 1)

    assert given.state_of(ledger, "body") is given.state_of(ledger, "last") is State.FAILED
    (call,) = read_list(ledger, task=CALL_ERRBACKS)
    assert [ring.id for ring in done.rings] == [call.id, "u"]  # a worker hears of the poison
    assert json.loads(call.message.body)[0][0]["request"]["id"] == "body"


# Again, at once, and after all


def test_a_repeated_finish_after_a_lost_reply_does_nothing_twice(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    end = given.failure(running(ledger))
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    assert finish(door, [end]).granted == {"a"}

    assert proxy.dropped.is_set()
    assert len(read_list(ledger, task=CALL_ERRBACKS)) == 1
    assert given.state_of(ledger, "last") is State.FAILED


def test_two_who_end_chains_that_meet_do_not_deadlock_and_agree(ledger: Ledger) -> None:
    # Given jobs whose messages name the same later jobs, in opposite orders
    shared = [step(f"s{number}") for number in range(40)]
    ids = [f"j{number}" for number in range(8)]
    enqueue(
        ledger,
        [
            first(job_id, {"chain": shared[:: 1 if number % 2 else -1]})
            for number, job_id in enumerate(ids)
        ],
    )

    # When all end at once
    given.all_at_once([lambda job_id=job_id: cancel(ledger, job_id, "no") for job_id in ids])  # type: ignore[misc] # the default is a str

    # Then each later job has ended once
    states = {given.state_of(ledger, one["options"]["task_id"]) for one in shared}
    assert states == {State.CANCELLED}


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED])
def test_a_replay_that_succeeds_brings_the_later_steps_after_all(
    ledger: Ledger, end: State
) -> None:
    finish(ledger, [Finish(running(ledger), end, "failed", error="x")])

    # When the first step is replayed and returns
    replay(ledger, "a")
    (one,) = claim(ledger, given.lease(ledger), ["a"])
    finish(ledger, [given.success(one.fence, outbox=(first("next", {"chain": [step("last")]}),))])
    (two,) = claim(ledger, given.lease(ledger), ["next"])
    finish(ledger, [given.success(two.fence, outbox=(given.job("last"),))])

    # Then they run
    assert given.state_of(ledger, "last") is State.QUEUED
    assert given.job_of(ledger, "last").error is None


def test_what_was_never_enqueued_says_what_to_replay_instead(ledger: Ledger) -> None:
    finish(ledger, [given.failure(running(ledger))])

    with pytest.raises(Conflict, match=r"never enqueued.*replay job a, which it was to follow"):
        replay(ledger, "last")

    # and when that cannot be replayed either, what to do
    ignored = Finish(
        running(ledger, first("b", {"chain": [step("c")]})), State.SUCCEEDED, "ignored"
    )
    finish(ledger, [ignored])
    with pytest.raises(Conflict, match=r"never enqueued.*start the chain or chord"):
        replay(ledger, "c")


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\x00 no JSON",
        json.dumps([[], {}, {"chain": [step("a\0b"), {"task": "x\0", "options": {
            "task_id": "ok", "queue": "\0", "group_id": "\ud800"}}],
            "errbacks": [{"task": "\0"}]}]).encode(),
    ],
    ids=["no JSON", "texts that Postgres refuses"],
)  # fmt: skip
def test_no_message_keeps_a_job_from_its_end(ledger: Ledger, body: bytes) -> None:
    enqueue(ledger, [replace(given.job("a"), message=Message("{}", body))])
    (one,) = claim(ledger, given.lease(ledger), ["a"])

    finish(ledger, [given.failure(one.fence)])

    assert given.state_of(ledger, "a") is State.FAILED


def test_a_long_chain_ends_in_parts(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_module, "BATCH", 7)
    steps = [step(f"s{number:03}") for number in range(50)]
    enqueue(ledger, [first("a", {"chain": steps})])

    cancel(ledger, "a", "no")

    assert len(read_list(ledger, state=State.CANCELLED, limit=100)) == 51


def test_a_long_chains_steps_repeat_a_large_exception_and_traceback_within_a_bound(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended_module, "REPEATED", 100_000)
    steps = [step(f"s{number:03}") for number in range(100)]
    fence = running(ledger, first("a", {"chain": steps}))

    long = {"result": b"r" * 5000, "result_type": "json", "traceback": "T" * 5000}
    finish(ledger, [given.failure(fence, error="ValueError: r", **long)])

    # The chain's last step, which its sender holds, has all; the others say why, and have some.
    rows = {f"s{number:03}": given.job_of(ledger, f"s{number:03}") for number in range(100)}
    last, middle = rows["s000"], rows["s050"]
    assert (last.result, last.result_type, last.traceback) == tuple(long.values())
    assert (middle.result, middle.result_type) == (None, None)
    assert middle.error == "job a, which it was to follow, failed: ValueError: r"
    assert {row.state for row in rows.values()} == {State.FAILED}
    assert 100 * 900 < sum(len(row.traceback or "") for row in rows.values()) < 130_000


def test_of_two_ends_of_one_job_the_first_counts(ledger: Ledger) -> None:
    two = [Ended("x", "tests.x", state, b"1") for state in (State.SUCCEEDED, State.FAILED)]

    ledger.run(lambda connection: insert_ended(connection, two))

    assert given.state_of(ledger, "x") is State.SUCCEEDED


def test_large_messages_are_read_in_parts(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given jobs whose messages together are too large for one statement
    monkeypatch.setattr(batches_module, "STATEMENT_BYTES", 5000)
    ids = [f"a{number}" for number in range(6)]
    jobs = [first(i, {"chain": [step(f"after {i}")]}, ["x" * 2000]) for i in ids]
    enqueue(ledger, jobs)
    read: list[int] = []

    def seen(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "SELECT id, task, queue, priority, state, error" in statement:
            read.append(cursor.rowcount)

    event.listen(ledger.engine, "after_cursor_execute", seen)

    # When all are cancelled at once
    assert cancel_batch(ledger, ids, [State.QUEUED], "no") == len(ids)

    # Then no statement reads more than it may, and each one's next step ends
    assert read == [2, 2, 2]
    assert all(given.state_of(ledger, f"after {i}") is State.CANCELLED for i in ids)


def test_rows_are_locked_in_the_order_of_their_ids_whatever_the_parts(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given parts of one row, and jobs in no order
    monkeypatch.setattr(ended_module, "BATCH", 1)
    sent: list[str] = []

    def seen(_c: Any, _k: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "INSERT INTO ledger.jobs" in statement:
            sent.append(parameters["id"])

    event.listen(ledger.engine, "before_cursor_execute", seen)

    # When they end
    made = [Ended(job_id, "tests.add", State.FAILED) for job_id in ("b", "c", "a")]
    ledger.run(lambda connection: insert_ended(connection, made))

    # Then two who end the same jobs cannot wait for each other
    assert len(sent) == 3
    assert sent == sorted(sent)
