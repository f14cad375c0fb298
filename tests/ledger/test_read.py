from __future__ import annotations

import pytest

from tests.ledger import given
from worker.jobs.states import State
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.groups import delete_group, read_group, save_group
from worker.ledger.read import counts, read, read_list, read_many


def test_an_unknown_job_is_nothing(ledger: Ledger) -> None:
    assert read(ledger, "a") is None
    assert read_many(ledger, []) == []


def test_attempts_stand_with_their_job_in_order(ledger: Ledger) -> None:
    from worker.jobs.job import Finish
    from worker.ledger.claim import claim

    given.enqueued(ledger, "a", "b")
    for _ in range(3):
        (one,) = claim(ledger, given.lease(ledger), ["a"])
        finish(ledger, [Finish(one.fence, State.QUEUED, "released")])

    found = {job.id: job for job in read_many(ledger, ["b", "a", "unknown"])}

    assert [attempt.number for attempt in found["a"].attempts] == [1, 2, 3]
    assert found["b"].attempts == ()


def test_a_list_is_read_page_by_page_each_job_once(ledger: Ledger) -> None:
    ids = given.enqueued(ledger, *(f"j{number:02}" for number in range(25)))
    pages: list[list[str]] = []
    before: str | None = None
    while page := [job.id for job in read_list(ledger, before=before, limit=10)]:
        pages.append(page)
        before = page[-1]

    assert [len(page) for page in pages] == [10, 10, 5]
    assert [job_id for page in pages for job_id in page] == ids[::-1]


def test_ids_are_ordered_byte_by_byte(ledger: Ledger) -> None:
    ids = ["B", "a", "_", "é", "Z", "0"]
    given.enqueued(ledger, *ids)

    assert [job.id for job in read_list(ledger)] == sorted(ids, key=str.encode, reverse=True)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"state": State.RUNNING}, {"running"}),
        ({"queue": "other"}, {"other"}),
        ({"task": "tests.sub"}, {"sub"}),
        ({"task": "tests.add", "queue": "other", "state": State.QUEUED}, {"other"}),
        ({"task": "tests.none"}, set()),
    ],
)
def test_a_list_is_narrowed(ledger: Ledger, filters: dict[str, object], expected: set[str]) -> None:
    given.running(ledger, "running")
    given.enqueued(ledger, "other", queue="other")
    given.enqueued(ledger, "sub", task="tests.sub")

    assert {job.id for job in read_list(ledger, **filters)} == expected  # type: ignore[arg-type] # by name


def test_counts_are_of_all_or_of_some(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", "b")
    given.running(ledger, "c")

    assert counts(ledger) == {State.QUEUED: 2, State.RUNNING: 1}
    assert counts(ledger, ["a", "c", "unknown"]) == {State.QUEUED: 1, State.RUNNING: 1}


def test_a_group_result_is_kept_replaced_and_dropped(ledger: Ledger) -> None:
    save_group(ledger, "g", b"1")
    save_group(ledger, "g", b"\x00\xff")

    assert read_group(ledger, "g") == b"\x00\xff"
    delete_group(ledger, "g")
    assert read_group(ledger, "g") is None
