"""No statement of the ledger becomes slow with its depth: each is watched on a million rows.

Twice: with the statistics of a quiet day, when a backlog has just come, and with fresh ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ledger import depth as deep
from tests.ledger.depth import Depth
from tests.ledger.depth_cases import CASES
from tests.ledger.plans import Seen, watched
from tests.servers import Databases
from worker.ledger.database import Ledger
from worker.settings import Settings


@pytest.fixture(scope="module")
def address(databases: Databases) -> str:
    settings = Settings.load(database_url=databases.new(), redis_url="redis://127.0.0.1")
    return settings.database_url.get_secret_value()


@pytest.fixture(scope="module")
def filled(address: str) -> Iterator[Depth]:
    ledger = Ledger(address, connections=1, waits_for_ever=True)
    deep.fill(ledger)
    yield Depth(ledger)
    ledger.close()


@pytest.fixture(scope="module", params=["a backlog just came", "fresh statistics"])
def depth(filled: Depth, request: pytest.FixtureRequest) -> Depth:
    if request.param == "fresh statistics":
        deep.take_statistics(filled.ledger)
    return filled


@pytest.fixture(scope="module")
def ledger(address: str) -> Iterator[Ledger]:
    """The door that is watched, with the bounds that a worker's has."""
    ledger = Ledger(address, connections=1)
    yield ledger
    ledger.close()


@pytest.mark.parametrize("name", CASES)
def test_its_cost_does_not_grow_with_the_ledger(depth: Depth, ledger: Ledger, name: str) -> None:
    case, jobs = CASES[name]
    run = case(depth)

    with watched(ledger) as seen:
        run(ledger)

    assert seen
    assert not faults(seen, jobs), "\n".join(map(str, seen))


def faults(seen: list[Seen], jobs: int = 1) -> list[str]:
    return [fault for one in seen for fault in one.faults(jobs)]


# That it can be seen


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("SELECT id FROM ledger.jobs WHERE root_id = 'nobody'", "it reads all of jobs"),
        ("SELECT * FROM ledger.attempts WHERE error = 'none'", "it reads all of attempts"),
        ("SELECT id FROM ledger.jobs WHERE state = 'queued' AND list = 'celery' AND priority = 7"
         " ORDER BY dispatch_seq LIMIT 1", "in vain"),
        ("SELECT count(*) FROM (SELECT FROM ledger.jobs ORDER BY id LIMIT 100000) found", "pages"),
    ],
)  # fmt: skip
def test_a_statement_that_grows_is_found(
    depth: Depth, ledger: Ledger, statement: str, fault: str
) -> None:
    with watched(ledger) as seen:
        ledger.execute(statement)

    assert any(fault in found for found in faults(seen))
