"""A keeper's post on a database and a Redis of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from worker.broker.doorbells import Doorbells
from worker.keeper.keeper import Post
from worker.ledger.database import Ledger
from worker.ledger.leader import Leadership
from worker.settings import Settings


@pytest.fixture
def settings(settings_for: Callable[..., Settings]) -> Settings:
    """Settings under which things happen soon."""
    return settings_for(lease_seconds=1, ring_grace_seconds=0.1)


@pytest.fixture
def post(settings: Settings) -> Iterator[Post]:
    """The post of a keeper that leads."""
    yield from posted(settings)


def posted(settings: Settings, holder: str = "tests") -> Iterator[Post]:
    """A post on the servers of `settings`, with the lead taken."""
    ledger = Ledger(settings.database_url.get_secret_value(), connections=5)
    doorbells = Doorbells(settings.redis_url.get_secret_value(), 2)
    leadership = Leadership("keeper", holder, 600)
    assert leadership.take(ledger)
    yield Post(ledger, doorbells, leadership, settings)
    ledger.close()
    doorbells.close()
