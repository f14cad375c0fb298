"""How many more places suspects want, and who starts a process for them."""

from __future__ import annotations

from tests.ledger import given
from worker.ledger.claim import claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.rescue import rescue
from worker.ledger.suspects import LATE, Wanted, wanted


def suspects(ledger: Ledger, *ids: str, level: int = 1) -> None:
    given.enqueued(ledger, *ids)
    ledger.execute(
        "UPDATE ledger.jobs SET suspicion = :level WHERE id = ANY(CAST(:ids AS text[]))",
        {"level": level, "ids": list(ids)},
    )


def place(ledger: Ledger, slots: int, pod: str | None = None) -> str:
    """An isolated process with so many children."""
    return given.lease(ledger, isolated=True, slots=slots, pod=pod)


def late(ledger: Ledger, lease: str, seconds: float = 8) -> None:
    """Let a lease of 15 s be renewed so long ago."""
    ledger.execute(
        "UPDATE ledger.workers SET renewed_at = clock_timestamp() - :seconds * interval '1 s',"
        " expires_at = clock_timestamp() + (15 - :seconds) * interval '1 s' WHERE lease = :lease",
        {"seconds": seconds, "lease": lease},
    )


def lacks(ledger: Ledger, lease: str | None = None) -> tuple[int, int]:
    """Slots and processes that a worker finds lacking."""
    found = wanted(ledger, lease or given.lease(ledger), ["celery"])
    assert found.any == (found.slots > 0 or found.alone > 0)
    return found.slots, found.alone


def test_suspects_want_places_until_there_are_slots_for_all(ledger: Ledger) -> None:
    assert lacks(ledger) == (0, 0)
    suspects(ledger, *"abcde")
    assert lacks(ledger) == (5, 0)

    first = place(ledger, 4)
    assert lacks(ledger) == (1, 0)
    place(ledger, 4)
    assert lacks(ledger) == (0, 0)

    given.expire(ledger, first)
    assert lacks(ledger) == (1, 0)


def test_a_slot_that_runs_a_suspect_is_no_place_for_another(ledger: Ledger) -> None:
    # Given three suspects, and a process with two children that runs two of them
    suspects(ledger, *"abc")
    lease = place(ledger, 2)
    found = claim_suspects(ledger, lease, ["celery"], 2, idle=True)

    # Then the third wants another one, until the first has ended
    assert lacks(ledger) == (1, 0)
    finish(ledger, [given.success(found[0].fence)])
    assert lacks(ledger) == (0, 0)


def test_what_must_run_alone_wants_an_idle_process(ledger: Ledger) -> None:
    # Given a process with room, which runs a suspect
    lease = place(ledger, 4)
    suspects(ledger, "a")
    (first,) = claim_suspects(ledger, lease, ["celery"], 1, idle=True)

    # When another one must run alone, then it wants a process until that one is idle
    suspects(ledger, "b", level=2)
    assert lacks(ledger) == (0, 1)
    finish(ledger, [given.success(first.fence)])
    assert lacks(ledger) == (0, 0)

    # And while it runs, the process has no place for others
    assert claim_suspects(ledger, lease, ["celery"], 4, idle=True)
    suspects(ledger, "c")
    assert lacks(ledger) == (1, 0)


def test_what_runs_under_an_overdue_lease_wants_places_before_it_expires(ledger: Ledger) -> None:
    # Given a worker with three jobs
    mine, other = given.lease(ledger), given.lease(ledger)
    given.claimed(ledger, *"abc", lease_id=other)

    # When a renewal is not late by more than a second, nothing is wanted; if it is, all
    late(ledger, other, 15 / 3 + LATE - 0.5)
    assert lacks(ledger, mine) == (0, 0)
    late(ledger, other, 15 / 3 + LATE)
    assert lacks(ledger, mine) == (3, 0)

    # Then a process that is there in time is enough, before the rescue and after it
    place(ledger, 4)
    assert lacks(ledger, mine) == (0, 0)
    given.expire(ledger, other)
    assert lacks(ledger, mine) == (0, 0)
    rescue(ledger, None, 3)
    assert lacks(ledger, mine) == (0, 0)


def test_a_short_lease_is_overdue_at_half_of_it(ledger: Ledger) -> None:
    mine, other = given.lease(ledger), given.lease(ledger)
    given.claimed(ledger, "a", lease_id=other)

    for ago, slots in ((0.8, 0), (1.1, 1)):
        ledger.execute(
            "UPDATE ledger.workers SET renewed_at = clock_timestamp() - :ago * interval '1 s',"
            " expires_at = clock_timestamp() + (2 - :ago) * interval '1 s' WHERE lease = :lease",
            {"ago": ago, "lease": other},
        )
        assert lacks(ledger, mine) == (slots, 0)


def test_what_runs_in_an_overdue_isolated_process_wants_to_run_alone(ledger: Ledger) -> None:
    suspects(ledger, "a", "b")
    lease = place(ledger, 4)
    claim_suspects(ledger, lease, ["celery"], 4, idle=True)

    late(ledger, lease)

    assert lacks(ledger) == (0, 2)


def test_an_overdue_worker_without_jobs_wants_nothing(ledger: Ledger) -> None:
    late(ledger, given.lease(ledger))

    assert lacks(ledger) == (0, 0)


def test_who_is_overdue_itself_sees_no_risk(ledger: Ledger) -> None:
    # As right after an outage of Postgres: nobody could renew.
    mine, other = given.lease(ledger), given.lease(ledger)
    given.claimed(ledger, "a", lease_id=other)
    late(ledger, other)
    late(ledger, mine)

    assert lacks(ledger, mine) == (0, 0)


def test_suspects_of_another_queue_are_other_workers_to_run(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", queue="other")
    ledger.execute("UPDATE ledger.jobs SET suspicion = 1")

    assert lacks(ledger) == (0, 0)


def test_workers_stand_in_a_row_without_those_that_have_a_process(ledger: Ledger) -> None:
    # Given four workers; the second has an isolated process, the third is overdue
    row = sorted(given.lease(ledger, pod=f"host:{number}") for number in range(4))
    ledger.execute("UPDATE ledger.workers SET pod = lease")
    place(ledger, 1, pod=row[1])
    late(ledger, row[2])

    ranks = [wanted(ledger, lease, ["celery"]).rank for lease in row]

    assert ranks == [0, 1, 1, 1]
    assert wanted(ledger, row[0], ["other"]) == Wanted(0, 0, 0)


def test_a_place_that_does_not_consume_the_suspects_queue_is_none(ledger: Ledger) -> None:
    # Given suspects of a queue, and a free place for other queues only
    suspects(ledger, "a")
    ledger.execute("UPDATE ledger.jobs SET queue = 'threads'")
    given.lease(ledger, isolated=True, slots=16)
    lease = given.lease(ledger)

    # Then a place is lacking, for a worker that consumes that queue too
    found = wanted(ledger, lease, ["celery", "threads"])
    assert (found.slots, found.alone) == (1, 0)

    # And none, once there is one that does
    ledger.execute("UPDATE ledger.workers SET queues = ARRAY['celery', 'threads'] WHERE isolated")
    assert not wanted(ledger, lease, ["celery", "threads"]).any
