"""Doorbells in a Redis database of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests import sentinels
from tests.tls import make_certificate
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


@pytest.fixture(scope="session")
def group() -> Iterator[sentinels.Group]:
    """Two servers and a Sentinel, for every test of this folder."""
    with sentinels.group() as made:
        yield made


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1's own, with its key."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "redis.pem", "IP:127.0.0.1")
