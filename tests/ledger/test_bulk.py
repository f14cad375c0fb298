"""A walk through many jobs costs a page at a time, whatever the statistics say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.ledger import given
from tests.ledger.depth import fill_ended
from tests.ledger.plans import _nodes, watched
from worker.client import Client
from worker.errors import Conflict
from worker.jobs.states import State
from worker.ledger import bulk
from worker.ledger.database import Ledger
from worker.settings import Settings

JOBS, WINDOW = 3000, 100


@pytest.mark.parametrize("state", [*bulk.OPEN, *bulk.ENDED_BADLY])
def test_a_page_reads_no_more_than_a_window(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    # Given many jobs of a state, of which the statistics know nothing
    monkeypatch.setattr(bulk, "WINDOW", WINDOW)
    ledger.execute("DROP TRIGGER refuse_illegal_move ON ledger.jobs")
    ledger.execute("ALTER TABLE ledger.jobs SET (autovacuum_enabled = off)")
    ledger.execute("ANALYZE ledger.jobs")
    fill_ended(ledger, 0, JOBS)
    ledger.execute(
        "UPDATE ledger.jobs SET state = :state, run_at = finished_at + interval '1 year'",
        {"state": str(state)},
    )

    # When they are counted
    with watched(ledger) as seen:
        found = bulk.count(ledger, bulk.Selection((state,)))

    # Then each page reads its own rows, and those of the last one that are of one order
    assert found == {state: JOBS}
    read = [node["Actual Rows"] for one in seen for node in _nodes(one.plan)]
    assert WINDOW <= max(read) <= WINDOW + 10, "\n".join(map(str, seen[:4]))


@pytest.mark.parametrize("seconds", [3600.0, 9e10, 9e12, 1e15, 1e300])
def test_no_age_is_too_great_to_ask_for(ledger: Ledger, seconds: float) -> None:
    given.enqueued(ledger, "a")
    assert bulk.count(ledger, bulk.Selection((State.QUEUED,), older_than=seconds)) == {}


@pytest.mark.parametrize("state", list(State))
def test_only_what_may_be_is_cancelled_or_replayed(settings: Settings, state: State) -> None:
    selection = bulk.Selection((state,))
    with Client(settings) as client:
        asked: list[tuple[Callable[[], object], tuple[State, ...]]] = [
            (lambda: client.cancel_many(selection), bulk.OPEN),
            (lambda: client.replay_many(selection), bulk.ENDED_BADLY),
            (lambda: client.count_selected(selection), bulk.OPEN + bulk.ENDED_BADLY),
        ]
        for ask, allowed in asked:
            with nullcontext() if state in allowed else pytest.raises(Conflict, match=str(state)):
                ask()
