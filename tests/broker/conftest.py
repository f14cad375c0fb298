"""Doorbells in a Redis database of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from worker.broker.doorbells import Doorbells


@pytest.fixture
def bells(redis_url: str) -> Iterator[Doorbells]:
    """The test's doorbells."""
    bells = Doorbells(redis_url)
    yield bells
    bells.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """What an operator sees in the same database."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
