"""An insert that meets a row which is deleted before it is looked at inserts again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from tests.ledger import given
from tests.ledger.test_interleavings import Actor
from worker.errors import LedgerUnavailable
from worker.jobs.job import Ended, Enqueued, NewJob
from worker.jobs.states import State
from worker.ledger.database import Ledger
from worker.ledger.ended import insert_ended
from worker.ledger.enqueue import enqueue
from worker.ledger.insert import TRIES

#: Words of the statements: the look at what is there, and the message for what awaits it.
LOOK, FILL = "awaits FROM", "task = "


def succeeded(ledger: Ledger, **more: Any) -> None:
    """A job that has succeeded long ago, with the id `old` or the key `old`."""
    (job_id,) = given.enqueued(ledger, "old", **more)
    ledger.execute(
        "UPDATE ledger.jobs SET state = 'running', attempt = 1, lease = 'l', worker = 'w'"
    )
    ledger.execute(
        "UPDATE ledger.jobs SET state = 'succeeded', finished_at = '2020-01-01' WHERE id = :id",
        {"id": job_id},
    )


def never_enqueued(ledger: Ledger, **_: Any) -> None:
    """A later step of a chain that failed long ago: it awaits its message for a replay."""
    step = Ended("old", "tests.add", State.FAILED, error="no")
    ledger.run(lambda connection: insert_ended(connection, [step]))
    given.age(ledger, "finished_at", 1e8, "old")


@pytest.mark.parametrize(
    ("given_row", "stop", "job"),
    [
        (succeeded, LOOK, given.job("old", 1)),
        (lambda ledger: succeeded(ledger, key="k"), LOOK, given.job("new", 1, key="k")),
        (never_enqueued, FILL, given.job("old", 1)),
    ],
    ids=["id", "key", "awaited"],
)
@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "in a batch"])
def test_what_retention_deletes_meanwhile_is_inserted_again(
    ledger: Ledger,
    open_ledger: Callable[..., Ledger],
    given_row: Callable[[Ledger], None],
    stop: str,
    job: NewJob,
    beside: int,
) -> None:
    given_row(ledger)
    batch = [job, *(given.job(f"beside-{number}") for number in range(beside))]
    # Given an insert that met a row, and is held before it looks what it met
    actor = Actor(open_ledger(), lambda door: enqueue(door, batch), stop)
    assert actor.stopped.wait(given.PATIENCE)
    # When retention deletes that row
    ledger.execute("DELETE FROM ledger.jobs WHERE id = 'old'")
    # Then the job is new, and no conflict with a row that is not there
    for answer, wanted in zip(actor.answer(), batch, strict=True):
        assert isinstance(answer, Enqueued) and answer.created and answer.id == wanted.id
        assert given.state_of(ledger, wanted.id) is State.QUEUED


def test_an_insert_that_always_meets_what_is_gone_then_ends(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    door, looks = open_ledger(), []

    def meddle(_: object, __: object, statement: str, *more: object) -> None:
        if "INSERT INTO ledger.jobs" in statement:
            given.enqueued(ledger, "old")
        elif LOOK in statement:
            looks.append(statement)
            ledger.execute("DELETE FROM ledger.jobs WHERE id = 'old'")

    event.listen(door.engine, "before_cursor_execute", meddle)
    with pytest.raises(LedgerUnavailable, match="gone a moment later"):
        enqueue(door, [given.job("old", 1), given.job("beside")])
    assert len(looks) == TRIES
