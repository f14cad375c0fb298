"""A ledger of the test's own, in which an illegal move raises, and doors to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.ledger import given
from tests.proxy import Proxy, proxied
from worker.ledger.database import Ledger
from worker.settings import Settings


@pytest.fixture
def url(settings: Settings) -> str:
    """The address of the test's database, as the ledger takes it."""
    return settings.database_url.get_secret_value()


@pytest.fixture
def open_ledger(url: str) -> Iterator[Callable[..., Ledger]]:
    """Open further doors to the test's database, by way of a proxy's address if one is given."""
    opened: list[Ledger] = []

    def open_one(address: str = url, connections: int = 1, timeout: float = 5.0) -> Ledger:
        opened.append(Ledger(address, connections=connections, connect_timeout=timeout))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """The test's ledger; Postgres itself refuses every move that is not in `MOVES`."""
    ledger = Ledger(url, connections=10)
    given.guard_moves(ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    """A network that can be broken, between the test and its database."""
    with proxied(url) as proxy:
        yield proxy
