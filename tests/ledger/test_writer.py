from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from sqlalchemy import text

from tests.ledger import given
from tests.proxy import Proxy
from worker.jobs.job import Fence, Finish, Ring
from worker.jobs.states import State
from worker.ledger import finish as finish_module
from worker.ledger import writer as writer_module
from worker.ledger.change import cancel, replay
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.read import counts
from worker.ledger.writer import BATCH, Writer
from worker.settings import Settings
from worker.stack.postgres import PostgresServer


class Written:
    """What a writer told its owner."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.written: list[str] = []
        self.stale: list[str] = []
        self.rings: list[str] = []

    def __call__(
        self, written: Sequence[Finish], stale: Sequence[Finish], rings: Sequence[Ring]
    ) -> None:
        self.batches.append(len(written))
        self.written += [end.fence.id for end in written]
        self.stale += [end.fence.id for end in stale]
        self.rings += [ring.id for ring in rings]


@pytest.fixture
def told() -> Written:
    return Written()


@pytest.fixture
def writer(ledger: Ledger, told: Written) -> Iterator[Writer]:
    writer = Writer(ledger, told)
    writer.start()
    yield writer
    writer.stop()
    assert writer.flush(given.PATIENCE)


def test_an_end_that_is_handed_over_is_written(
    ledger: Ledger, writer: Writer, told: Written
) -> None:
    fence = given.running(ledger, "a")

    writer.put(given.success(fence, outbox=(given.job("b"),)))

    assert writer.flush(given.PATIENCE)
    assert writer.backlog == 0
    assert given.state_of(ledger, "a") is State.SUCCEEDED
    assert (told.written, told.stale, told.rings) == (["a"], [], ["b"])


def test_a_stale_end_is_told_apart(ledger: Ledger, writer: Writer, told: Written) -> None:
    fence = given.running(ledger, "a")
    cancel(ledger, "a", "not wanted")

    writer.put(given.success(fence))

    assert writer.flush(given.PATIENCE)
    assert (told.written, told.stale) == ([], ["a"])


def test_more_than_a_batch_is_written_in_order_in_few_transactions(
    ledger: Ledger, told: Written
) -> None:
    ids = [f"j{number:04}" for number in range(BATCH + 100)]
    fences = [one.fence for one in given.claimed(ledger, *ids)]
    writer = Writer(ledger, told)
    for fence in fences:
        writer.put(given.success(fence))

    writer.start()

    assert writer.flush(given.PATIENCE)
    assert told.batches == [BATCH, 100]
    assert told.written == ids
    assert counts(ledger) == {State.SUCCEEDED: len(ids)}
    writer.stop()


def test_of_two_ends_of_one_attempt_the_first_counts(ledger: Ledger, told: Written) -> None:
    fence = given.running(ledger, "a")
    writer = Writer(ledger, told)
    writer.put(given.success(fence, b"1"))
    writer.put(given.failure(fence))

    writer.start()

    assert writer.flush(given.PATIENCE)
    assert given.job_of(ledger, "a").result == b"1"
    writer.stop()


@pytest.mark.parametrize(
    "refused",
    [
        {"children": "a\0b"},
        {"traceback": "\0"},
        {"error": "\ud800"},
        {"state": State.SCHEDULED, "delay": None},
        {"state": State.SCHEDULED, "delay": 1e300},
    ],
)
def test_a_refused_end_fails_alone(
    ledger: Ledger, told: Written, refused: dict[str, object]
) -> None:
    # Given seven ends, of which Postgres refuses one
    fences = [one.fence for one in given.claimed(ledger, *"abcdefg")]
    values: dict[str, object] = {"state": State.SUCCEEDED, "outcome": "succeeded", **refused}
    writer = Writer(ledger, told)
    for fence in fences:
        end = Finish(fence, **values) if fence.id == "d" else given.success(fence)  # type: ignore[arg-type] # by name
        writer.put(end)

    # When the writer writes them
    writer.start()
    assert writer.flush(given.PATIENCE)

    # Then the refused one alone has failed, with the reason, and the others kept their order
    assert told.written == list("abcdefg")
    job = given.job_of(ledger, "d")
    assert job.state is State.FAILED and "Postgres refuses" in str(job.error)
    assert given.attempts_of(ledger, "d") == [(1, "failed")]
    assert counts(ledger) == {State.SUCCEEDED: 6, State.FAILED: 1}
    writer.stop()


def test_a_refused_link_does_not_take_the_other_ends_with_it(
    ledger: Ledger, writer: Writer
) -> None:
    from dataclasses import replace

    first, second = (one.fence for one in given.claimed(ledger, "a", "b"))
    writer.put(given.success(first, outbox=(replace(given.job("c"), task="\0"),)))
    writer.put(given.success(second))

    assert writer.flush(given.PATIENCE)
    assert given.state_of(ledger, "a") is State.FAILED
    assert given.state_of(ledger, "b") is State.SUCCEEDED


def test_ends_wait_out_a_cut_network(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger], told: Written
) -> None:
    # Given a writer whose ledger is away
    fence = given.running(ledger, "a")
    writer = Writer(open_ledger(proxy.url), told)
    proxy.refuse()
    writer.start()
    writer.put(given.success(fence))
    given.until(lambda: writer.failing)
    assert writer.backlog == 1 and not writer.is_stalled(0.5)

    # When it is back
    proxy.heal()
    writer.retry_now()

    # Then the end is written, and the writer says so
    assert writer.flush(given.PATIENCE)
    assert given.state_of(ledger, "a") is State.SUCCEEDED
    assert told.written == ["a"] and not writer.failing
    writer.stop()


def test_an_end_whose_reply_is_lost_is_told_once(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger], told: Written
) -> None:
    fence = given.running(ledger, "a")
    writer = Writer(given.connected(open_ledger(proxy.url)), told)
    writer.start()
    proxy.drop_reply_after_next_commit()

    writer.put(given.success(fence))

    assert writer.flush(given.PATIENCE) and proxy.dropped.is_set()
    assert (told.written, told.stale) == (["a"], [])
    writer.stop()


def test_ends_survive_a_crash_of_postgres(own_postgres: PostgresServer, told: Written) -> None:
    # Given ends that come while Postgres crashes and recovers
    settings = Settings.load(database_url=own_postgres.url, redis_url="redis://127.0.0.1")
    ledger = Ledger(settings.database_url.get_secret_value())
    fences = [one.fence for one in given.claimed(ledger, *"abcd")]
    writer = Writer(ledger, told)
    writer.start()
    writer.put(given.success(fences[0]))
    assert writer.flush(given.PATIENCE)
    restart = threading.Thread(target=own_postgres.restart, args=("immediate",))
    restart.start()
    for fence in fences[1:]:
        writer.put(given.success(fence))
    given.join([restart])

    # Then all of them are written, in their order
    assert writer.flush(given.PATIENCE)
    assert told.written == list("abcd")
    assert counts(ledger) == {State.SUCCEEDED: 4}
    writer.stop()
    ledger.close()


def test_ends_are_held_back_while_the_lease_is_in_doubt(ledger: Ledger, told: Written) -> None:
    # Given a worker that does not know whether its lease is renewed
    fence = given.running(ledger, "a")
    asked, held = threading.Event(), threading.Event()

    def may_write() -> bool:
        asked.set()
        return held.is_set()

    writer = Writer(ledger, told, may_write)
    writer.start()
    writer.put(given.success(fence))
    assert asked.wait(given.PATIENCE)
    assert given.state_of(ledger, "a") is State.RUNNING and writer.backlog == 1

    # When it is renewed
    held.set()
    writer.retry_now()

    # Then the end is written
    assert writer.flush(given.PATIENCE)
    assert told.written == ["a"]
    writer.stop()


def test_a_fault_of_our_own_keeps_the_ends_and_counts_as_a_stall(
    ledger: Ledger, told: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that stumbles over a bug
    fence = given.running(ledger, "a")
    real, broken = finish_module.finish, threading.Event()
    stumbled = threading.Event()

    def finish(*args: object) -> object:
        if not broken.is_set():
            stumbled.set()
            raise ZeroDivisionError("a bug")
        return real(*args)  # type: ignore[arg-type] # handed through

    monkeypatch.setattr(writer_module, "finish", finish)
    writer = Writer(ledger, told)
    writer.start()
    writer.put(given.success(fence))
    assert stumbled.wait(given.PATIENCE)

    # Then it is stalled, which stops the renewals; and the end is kept
    given.until(lambda: writer.is_stalled(0.01))
    broken.set()
    writer.retry_now()
    assert writer.flush(given.PATIENCE)
    assert told.written == ["a"]
    writer.stop()


def test_a_stopped_writer_first_writes_what_it_has(ledger: Ledger, told: Written) -> None:
    fence = given.running(ledger, "a")
    writer = Writer(ledger, told)
    writer.put(given.success(fence))
    writer.stop()

    writer.start()

    assert writer.flush(given.PATIENCE)
    assert told.written == ["a"]


def test_large_results_are_not_written_in_one_message(ledger: Ledger, told: Written) -> None:
    # Postgres takes no message above 1 GB, and drops the connection of who sends one: a batch of
    # large results would be tried for ever.
    ids = [f"j{number}" for number in range(6)]
    fences = [one.fence for one in given.claimed(ledger, *ids)]
    writer = Writer(ledger, told)
    for fence in fences:
        writer.put(given.success(fence, b"x" * (6 << 20)))

    writer.start()

    assert writer.flush(given.PATIENCE)
    assert told.written == ids
    assert told.batches == [2, 2, 2]
    writer.stop()


def test_a_fence_that_was_never_granted_is_stale(writer: Writer, told: Written) -> None:
    writer.put(given.success(Fence("nobody", 1, "nowhere")))

    assert writer.flush(given.PATIENCE)
    assert told.stale == ["nobody"]


def test_a_fault_stays_a_stall_when_the_lease_is_let_go_and_heals(
    ledger: Ledger, told: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that stumbles over a bug, so that its worker lets the lease go
    fence = given.running(ledger, "a")
    real, broken, let_go = finish_module.finish, threading.Event(), threading.Event()
    stumbles: list[None] = []

    def finish(*args: object) -> object:
        if not broken.is_set():
            let_go.set()
            stumbles.append(None)
            raise ZeroDivisionError("a bug")
        return real(*args)  # type: ignore[arg-type] # handed through

    monkeypatch.setattr(writer_module, "finish", finish)
    monkeypatch.setattr(writer_module, "LAST_PAUSE", 0.05)
    writer = Writer(ledger, told, lambda: not let_go.is_set())
    writer.start()
    writer.put(given.success(fence))
    given.until(lambda: stumbles)
    since = writer._progress

    # When it has tried for a while, then nothing of that was progress
    given.until(lambda: len(stumbles) > 3)
    assert writer._progress == since
    assert writer.is_stalled(0.01)

    # And when the bug is gone, its end is written though the lease is not held yet
    broken.set()
    writer.retry_now()
    assert writer.flush(given.PATIENCE)
    assert told.written == ["a"] and not writer.is_stalled(0.0)
    writer.stop()


def test_two_attempts_of_one_job_in_one_batch_are_both_settled(
    ledger: Ledger, told: Written
) -> None:
    # Given a job whose first attempt is stale, and a second one of the same worker
    first = given.running(ledger, "a")
    cancel(ledger, "a", "not wanted")
    replay(ledger, "a")
    (second,) = claim(ledger, first.lease, ["a"])
    other = given.running(ledger, "b")
    writer = Writer(ledger, told)
    for fence in (first, second.fence, other):
        writer.put(given.success(fence, outbox=(given.job(f"after-{fence.id}{fence.attempt}"),)))

    # When both ends stand in one batch
    writer.start()
    assert writer.flush(given.PATIENCE)

    # Then the second one is written, the first one is told to be stale and starts nothing
    assert (sorted(told.written), told.stale) == (["a", "b"], ["a"])
    assert sorted(told.rings) == ["after-a2", "after-b1"]
    assert given.state_of(ledger, "a") is State.SUCCEEDED
    writer.stop()


def test_a_release_and_the_next_attempts_end_in_one_batch_keep_their_order(
    ledger: Ledger, told: Written
) -> None:
    fence = given.running(ledger, "a")
    writer = Writer(ledger, told)
    writer.put(given.retry(fence))
    writer.put(given.success(Fence("a", 2, fence.lease)))

    writer.start()

    assert writer.flush(given.PATIENCE)
    assert (told.written, told.stale) == (["a"], ["a"])
    assert given.state_of(ledger, "a") is State.SCHEDULED
    writer.stop()


def slow(ledger: Ledger, seconds: float) -> None:
    """Let Postgres take so long over each end."""
    ledger.execute(f"""
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$
    """)
    ledger.execute("""
        CREATE TRIGGER dawdle BEFORE UPDATE ON ledger.jobs
        FOR EACH ROW WHEN (NEW.state = 'succeeded') EXECUTE FUNCTION dawdle()
    """)


def test_a_batch_that_postgres_cannot_do_in_time_is_written_in_parts(
    ledger: Ledger, open_ledger: Callable[..., Ledger], told: Written
) -> None:
    # Given ends that take far longer together than an answer may
    ids = [f"j{number:02}" for number in range(12)]
    fences = [one.fence for one in given.claimed(ledger, *ids)]
    slow(ledger, 0.25)
    writer = Writer(open_ledger(timeout=0.5), told)
    for fence in fences:
        writer.put(given.success(fence))

    # Then all of them are written, in their order
    writer.start()
    assert writer.flush(3 * given.PATIENCE)
    assert told.written == ids
    assert max(told.batches) <= 4
    assert not writer.failing
    writer.stop()


def test_an_end_that_takes_longer_than_an_answer_may_is_waited_for(
    ledger: Ledger, open_ledger: Callable[..., Ledger], told: Written
) -> None:
    fence = given.running(ledger, "a")
    slow(ledger, 1.5)
    writer = Writer(open_ledger(timeout=0.5), told)
    writer.start()
    writer.put(given.success(fence))

    assert writer.flush(2 * given.PATIENCE)
    assert told.written == ["a"]
    assert given.state_of(ledger, "a") is State.SUCCEEDED
    writer.stop()


def test_a_busy_writer_gathers_and_an_idle_one_does_not_wait(
    ledger: Ledger, writer: Writer, told: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a time to gather that nobody could wait for
    monkeypatch.setattr(writer_module, "GATHER", 10 * given.PATIENCE)
    fences = [given.running(ledger, str(number)) for number in range(BATCH + 1)]
    with ledger.transaction() as locking:
        locking.execute(text("LOCK TABLE ledger.jobs IN SHARE MODE"))
        # When one end comes, and more while it is written
        writer.put(given.success(fences[0]))
        given.until(lambda: not writer._pending)  # it is being written
        for fence in fences[1:]:
            writer.put(given.success(fence))
    # Then it was written at once, and the others together as soon as they filled a batch
    assert writer.flush(given.PATIENCE)
    assert told.batches == [1, BATCH]
