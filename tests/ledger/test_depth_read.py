"""Lists and counts are the same however they are found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from tests.ledger import given
from worker.jobs.job import Finish, Job
from worker.jobs.states import State
from worker.ledger import read as read_module
from worker.ledger.change import cancel
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.read import counts, read_list

QUEUES, TASKS = ("celery", "other"), ("tests.add", "tests.sub")


def some_of_each(ledger: Ledger) -> None:
    """Jobs of every state, queue and task, in no order."""
    lease = given.lease(ledger)
    ends: dict[State, Callable[..., Finish]] = {
        State.SUCCEEDED: given.success,
        State.FAILED: given.failure,
    }
    numbers = itertools.count()
    for _, state, queue, task in itertools.product(range(2), State, QUEUES, TASKS):
        job_id = f"j{next(numbers) * 7 % 53:02}"
        delay = 600 if state is State.SCHEDULED else None
        given.enqueued(ledger, job_id, queue=queue, task=task, delay=delay)
        if state is State.CANCELLED:
            cancel(ledger, job_id, "not wanted")
        elif state is State.RUNNING or state in ends:
            (one,) = claim(ledger, lease, [job_id])
            if state in ends:
                finish(ledger, [ends[state](one.fence)])


def test_every_filter_finds_what_it_says_page_by_page(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given jobs of every kind, and lists that look at two to five of them at once
    monkeypatch.setattr(read_module, "FIRST_WINDOW", 2)
    monkeypatch.setattr(read_module, "LAST_WINDOW", 5)
    some_of_each(ledger)
    everything = read_list(ledger, limit=1000)
    assert len(everything) == 48

    # When they are listed by each combination of filters, in pages of three
    for state, queue, task in itertools.product([None, *State], [None, *QUEUES], [None, *TASKS]):
        expected = [
            job.id
            for job in everything
            if state in (None, job.state)
            and queue in (None, job.queue)
            and task in (None, job.task)
        ]
        # Then the pages together are all there are, in order
        found = pages(ledger, state=state, queue=queue, task=task)
        assert [job.id for job in found] == expected


def pages(ledger: Ledger, **filters: Any) -> list[Job]:
    found: list[Job] = []
    before: str | None = None
    while page := read_list(ledger, before=before, limit=3, **filters):
        assert len(page) <= 3
        found += page
        before = page[-1].id
    return found


def test_what_has_ended_is_counted_up_to_a_number_and_then_estimated(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given ten successes, which Postgres has statistics of, and other jobs
    given.enqueued(ledger, *(f"q{number}" for number in range(8)))
    claims = given.claimed(ledger, *(f"s{number}" for number in range(10)))
    finish(ledger, [given.success(one.fence) for one in claims])
    finish(ledger, [given.failure(given.running(ledger))])
    with ledger.transaction() as connection:
        connection.execute(text("ANALYZE ledger.jobs"))
    exact = {State.QUEUED: 8, State.SUCCEEDED: 10, State.FAILED: 1}
    assert counts(ledger) == exact

    # When five is the most that is counted
    monkeypatch.setattr(read_module, "EXACT", 5)
    assert counts(ledger) == exact

    # Then the successes that came since are known about, and the others are counted
    more = given.claimed(ledger, "t1", "t2")
    finish(ledger, [given.success(one.fence) for one in more])
    given.enqueued(ledger, "q8", "q9")
    found = counts(ledger)
    assert 6 <= found.pop(State.SUCCEEDED) <= 24
    assert found == {State.QUEUED: 10, State.FAILED: 1}
