"""Fixtures of every test: real servers, a database of its own, settings, subprocesses."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import kombu.pools
import pytest

from tests import leftovers, servers
from tests.processes import Processes
from tests.servers import Databases, RedisDatabases
from worker.settings import Settings
from worker.stack.postgres import PostgresServer
from worker.stack.redis import RedisServer
from worker.stack.scratch import Scratch

# A slow machine is no fault of an example.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

#: How many files and sockets a process of tests may hold in the end; it holds some 60.
DESCRIPTORS = 200

_FAILED = pytest.StashKey[bool]()
_LEFTOVERS = pytest.StashKey[Scratch | None]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Collect what the session makes: before any of it is made, and before xdist's workers are."""
    config.stash[_LEFTOVERS] = leftovers.begin()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it, where the session ends by itself."""
    if (made := config.stash.get(_LEFTOVERS, None)) is not None:
        from worker.runtime.tempdir import (
            forget_temp_dir,
        )  # here: tests of pure rooms need no Celery

        forget_temp_dir()  # it stands in there, and multiprocessing would miss it at the exit
        made.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's Postgres, migrated. Shared: a test that disturbs it takes `own_postgres`."""
    with servers.postgres(servers.memory()) as server:
        _migrate(server.url)
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """The session's Redis. Shared: a test that disturbs it takes `own_redis`."""
    with servers.redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Databases:
    """For a test that needs more than one database; they go with the server's folder."""
    return Databases(postgres)


@pytest.fixture(scope="session")
def redis_databases(redis: RedisServer) -> RedisDatabases:
    """For a test that needs more than one Redis database."""
    return RedisDatabases(redis)


@pytest.fixture
def database_url(databases: Databases) -> str:
    """A Postgres database of the test's own: migrated and empty. As an operator writes it; the
    ledger takes it as `settings.database_url` reads it."""
    return databases.new()


@pytest.fixture
def redis_url(redis_databases: RedisDatabases) -> str:
    """A Redis database of the test's own: empty."""
    return redis_databases.new()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A whole Postgres of the test's own, migrated, to stop, kill and restart."""
    with servers.postgres() as server:
        _migrate(server.url)
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A whole Redis of the test's own, to stop, kill and restart."""
    with servers.redis_server() as server:
        yield server


@pytest.fixture
def settings_for(database_url: str, redis_url: str) -> Callable[..., Settings]:
    """Settings of the test's own servers, with overrides by field name."""

    def load(**overrides: Any) -> Settings:
        return Settings.load(**{"database_url": database_url, "redis_url": redis_url, **overrides})

    return load


@pytest.fixture
def settings(settings_for: Callable[..., Settings]) -> Settings:
    """The default settings on the test's own servers."""
    return settings_for()


@pytest.fixture
def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """A subprocess's environment: this one, and the test's own servers."""
    return {**os.environ, "DATABASE_URL": database_url, "REDIS_URL": redis_url}


@pytest.fixture
def processes(
    tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[Processes]:
    """Start subprocesses by `processes(argv)`; killed with the test, and shown when it fails."""
    started = Processes(tmp_path, environment)
    yield started
    started.kill_all()
    if request.node.stash.get(_FAILED, False):
        print(started.report())  # pytest shows it with the failure


@pytest.fixture(autouse=True, scope="session")
def _tests_close_what_they_open() -> Iterator[None]:
    """Past 1,024 descriptors `select` fails, in whichever test comes then."""
    yield
    assert len(os.listdir("/dev/fd")) < DESCRIPTORS


@pytest.fixture(autouse=True)
def _no_connections_are_left() -> Iterator[None]:
    """kombu keeps the connections of an app in its own pools, also when the app is closed."""
    yield
    kombu.pools.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember on the test that it failed, for the fixtures that it used."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


def migrated(server: PostgresServer) -> PostgresServer:
    """The server, with the schema in its database."""
    _migrate(server.url)
    return server


def _migrate(url: str) -> None:
    from worker.ledger.migrate import migrate  # here: tests of pure rooms need no database

    settings = Settings.load(database_url=url, redis_url="redis://127.0.0.1")
    migrate(settings.database_url.get_secret_value())
