"""From doorbells to claims. Rules 10, 23, 24."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from celery import Celery

from worker.broker.doorbells import Doorbells
from worker.errors import Conflict, LedgerUnavailable
from worker.jobs.job import Claim, Fence, Finish, Ring
from worker.jobs.message import new_job
from worker.jobs.queues import lists_of
from worker.jobs.states import State
from worker.ledger.change import cancel
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.lease import open_lease
from worker.ledger.read import counts, read
from worker.runtime.claims import Claims, Phase
from worker.runtime.fetch import DoorbellSource
from worker.runtime.suspects import SuspectSource
from worker.settings import Settings
from worker.stack.postgres import PostgresServer


class Given:
    """A source on real stores, with what a test needs around it."""

    def __init__(self, settings: Settings, database_url: str | None = None) -> None:
        url = database_url or settings.database_url.get_secret_value()
        self.ledger = Ledger(url)
        self.doorbells = Doorbells(settings.redis_url.get_secret_value())
        self.claims = Claims(lambda: 10)
        self.lease = open_lease(self.ledger, "w", ["celery"], 60)
        self.redis_url = settings.redis_url.get_secret_value()

    def source(self, *, adopt_foreign: bool = True, limit: int = 1000) -> DoorbellSource:
        return DoorbellSource(
            self.ledger,
            self.doorbells,
            self.claims,
            lambda: ["celery"],
            adopt_foreign=adopt_foreign,
            payload_max_bytes=limit,
        )

    def foreign(self, *args: object) -> str:
        """A job of a producer that does not know the ledger."""
        with Celery("plain", broker=self.redis_url, set_as_current=False) as plain:
            return str(plain.send_task("test.add", args).id)

    def waiting(self) -> int:
        return len(self.doorbells.pop(lists_of("celery"), 100))


@pytest.fixture
def given(settings: Settings) -> Iterator[Given]:
    made = Given(settings)
    yield made
    made.ledger.close()
    made.doorbells.close()


def test_a_doorbell_of_ours_without_a_row_is_dropped_and_never_adopted(given: Given) -> None:
    # An old Redis dataset rings for what retention has removed.
    given.doorbells.ring([Ring("gone", "celery", 7)])
    assert given.source().take(given.lease, 10) == []
    assert counts(given.ledger) == {}
    assert given.claims.entries() == []


def test_no_more_is_popped_than_there_are_free_slots(given: Given) -> None:
    jobs = [new_job("test.add", [n]) for n in range(5)]
    rings = [answer.ring for answer in enqueue(given.ledger, jobs)]  # type: ignore[union-attr] # new
    given.doorbells.ring([ring for ring in rings if ring])
    assert len(given.source().take(given.lease, 2)) == 2
    assert given.waiting() == 3


def test_a_queue_that_is_cancelled_while_an_idle_worker_waits_is_popped_no_more(
    given: Given,
) -> None:
    asked: list[str] = []

    def queues() -> list[str]:
        asked.append("once more")
        if len(asked) == 1:
            return ["celery"]
        given.doorbells.ring([Ring("a-job", "celery", 1)])
        return []

    source = DoorbellSource(
        given.ledger, given.doorbells, given.claims, queues,
        adopt_foreign=True, payload_max_bytes=1000,
    )  # fmt: skip

    assert source.take(given.lease, 10) == []
    assert given.waiting() == 1


def test_a_second_doorbell_of_a_job_that_is_held_here_is_ignored(given: Given) -> None:
    job = new_job("test.add", [1])
    (answer,) = enqueue(given.ledger, [job])
    ring = Ring(job.id, "celery", 1)
    given.doorbells.ring([ring, ring])
    assert answer
    (held,) = given.source().take(given.lease, 10)
    assert held.fence == Fence(job.id, 1, given.lease)
    given.doorbells.ring([ring])
    assert given.source().take(given.lease, 10) == []
    assert given.claims.fence_of(job.id) == held.fence


def test_what_is_granted_is_delivered_whatever_befalls_what_is_denied(given: Given) -> None:
    job = new_job("test.add", [1])
    enqueue(given.ledger, [job])
    given.doorbells.ring([Ring(job.id, "celery", 1), Ring("denied", "celery", 2)])

    def put_off(ids: Sequence[str], granted: Sequence[Claim]) -> None:
        raise RuntimeError("a fault of our own")

    source = DoorbellSource(
        given.ledger, given.doorbells, given.claims, lambda: ["celery"],
        adopt_foreign=True, payload_max_bytes=1000, put_off=put_off,
    )  # fmt: skip

    assert [claim.fence.id for claim in source.take(given.lease, 10)] == [job.id]


def test_a_foreign_job_is_adopted_and_acknowledged(given: Given) -> None:
    job_id = given.foreign(1, 2)
    (claim,) = given.source().take(given.lease, 10)
    assert (claim.fence.id, claim.task) == (job_id, "test.add")
    assert given.doorbells.restore(-1) == 0, "nothing is left to be put back"


@pytest.mark.parametrize(
    ("options", "why"),
    [({"adopt_foreign": False}, "WORKER_ADOPT_FOREIGN"), ({"limit": 10}, "over the limit")],
    ids=["not wanted", "too large"],
)
def test_a_foreign_job_that_is_not_taken_is_kept_for_operators(
    given: Given, options: dict[str, int], why: str
) -> None:
    given.foreign("x" * 100)
    assert given.source(**options).take(given.lease, 10) == []  # type: ignore[arg-type] # by name
    (note,) = given.doorbells.quarantined()
    assert why in note["reason"]
    assert "test.add" in note["entry"]
    assert counts(given.ledger) == {}


def test_entries_that_nobody_can_read_do_not_keep_others_out(given: Given) -> None:
    raw = given.doorbells._redis
    for entry in (b"", b"{}", b"[]", b"\xff\xfe", b'{"ledger": 1}', b'{"ledger": 1e999, "id": 1}',
                  b'{"body": 5, "properties": 3, "headers": []}', b"[" * 5000):  # fmt: skip
        raw.lpush("celery", entry)
    job_id = given.foreign(1, 2)
    taken = given.source().take(given.lease, 20)
    assert [claim.fence.id for claim in taken] == [job_id]
    assert len(given.doorbells.quarantined()) == 8


def test_what_was_popped_while_postgres_is_away_is_put_back(
    settings: Settings, own_postgres: PostgresServer
) -> None:
    away = Given(settings, own_postgres.url.replace("postgresql://", "postgresql+psycopg2://"))
    away.doorbells.ring([Ring("b", "celery", 1), Ring("a", "celery", 2)])
    own_postgres.stop()
    with pytest.raises(LedgerUnavailable):
        away.source().take(away.lease, 10)
    assert [item.entry for item in away.doorbells.pop(lists_of("celery"), 10)] == [
        b'{"ledger": 1, "id": "b"}',
        b'{"ledger": 2, "id": "a"}',
    ]
    assert away.claims.entries() == []
    away.doorbells.close()


def test_what_was_adopted_is_in_the_ledger_before_it_runs(given: Given) -> None:
    job_id = given.foreign(1, 2)
    given.source().take(given.lease, 10)
    job = read(given.ledger, job_id)
    assert job is not None
    assert job.state is State.RUNNING


@pytest.mark.parametrize("code", ["57P03", "P0001"], ids=["Postgres is away", "a trigger's own"])
def test_what_is_granted_is_delivered_although_a_foreign_entry_cannot_be_adopted(
    given: Given, code: str
) -> None:
    # Given a job of ours and a foreign one in one batch, and a ledger that refuses new rows
    job = new_job("test.add", [1])
    (answer,) = enqueue(given.ledger, [job])
    assert not isinstance(answer, Conflict)
    assert answer.ring
    given.doorbells.ring([answer.ring])
    stranger = given.foreign(1, 2)
    given.ledger.execute(
        "CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '{code}'; END $$"
    )
    given.ledger.execute(
        "CREATE TRIGGER away BEFORE INSERT ON ledger.jobs FOR EACH ROW EXECUTE FUNCTION away()"
    )
    # When the batch is taken
    taken = given.source().take(given.lease, 10)
    # Then ours is delivered, and the foreign one is kept for later
    assert [claim.fence.id for claim in taken] == [job.id]
    given.ledger.execute("DROP TRIGGER away ON ledger.jobs")
    given.doorbells.restore(0)  # as the keeper does with what nobody has acknowledged
    assert [claim.fence.id for claim in given.source().take(given.lease, 10)] == [stranger]


def test_a_foreign_job_that_postgres_refuses_is_kept_for_operators(given: Given) -> None:
    given.ledger.execute("ALTER TABLE ledger.jobs ADD CONSTRAINT odd CHECK (task <> 'test.odd')")
    with Celery("plain", broker=given.redis_url, set_as_current=False) as plain:
        plain.send_task("test.odd")
    good = given.foreign(1, 2)
    assert [claim.fence.id for claim in given.source().take(given.lease, 10)] == [good]
    (note,) = given.doorbells.quarantined()
    assert "test.odd" in note["entry"]


class Suspects:
    """An isolated process's source, and what a test needs around it."""

    def __init__(self, given: Given, slots: int) -> None:
        self.given = given
        self.claims = Claims(lambda: slots)
        self.lease = open_lease(given.ledger, "i", ["celery"], 60, isolated=True, slots=slots)
        self.source = SuspectSource(given.ledger, self.claims, lambda: ["celery"], pause=0)

    def suspected(self, suspicion: int) -> str:
        job = new_job("test.add", [1, 1])
        enqueue(self.given.ledger, [job])
        self.given.ledger.execute(
            "UPDATE ledger.jobs SET suspicion = :level WHERE id = :id",
            {"level": suspicion, "id": job.id},
        )
        return job.id

    def take(self) -> list[Fence]:
        return [one.fence for one in self.source.take(self.lease, self.claims.free())]


def test_suspects_fill_the_free_children_and_are_in_the_inventory(given: Given) -> None:
    suspects = Suspects(given, 3)
    ids = {suspects.suspected(1) for _ in range(5)}

    first = suspects.take()

    assert len(first) == 3 and {fence.id for fence in first} < ids
    assert {entry.fence for entry in suspects.claims.entries()} == set(first)
    assert suspects.take() == []
    finish(given.ledger, [Finish(first[0], State.SUCCEEDED, "succeeded")])
    suspects.claims.settle(first[0])
    assert len(suspects.take()) == 1


def test_what_must_run_alone_waits_for_ends_that_are_not_committed(given: Given) -> None:
    # Given a suspect whose end waits to be written, and one that must run alone
    suspects = Suspects(given, 3)
    suspects.suspected(1)
    (first,) = suspects.take()
    alone = suspects.suspected(2)
    suspects.claims.move(first, Phase.ENDED)

    # Then it waits, because that end would be lost with it
    assert suspects.take() == []
    finish(given.ledger, [Finish(first, State.SUCCEEDED, "succeeded")])
    assert suspects.take() == []
    suspects.claims.settle(first)
    assert [fence.id for fence in suspects.take()] == [alone]


def test_beside_what_runs_alone_nothing_is_taken_even_after_its_cancel(given: Given) -> None:
    # Given a job that runs alone, and is cancelled: its child lives for a while
    suspects = Suspects(given, 3)
    suspects.suspected(2)
    (alone,) = suspects.take()
    other = suspects.suspected(1)
    assert suspects.take() == []
    cancel(given.ledger, alone.id, "not wanted", running=True)

    # Then the others wait until this process has let go of it too
    assert suspects.take() == []
    suspects.claims.settle(alone)
    assert [fence.id for fence in suspects.take()] == [other]
