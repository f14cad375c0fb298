"""The embedded Redis: it starts anywhere, keeps what it took, and leaves nothing behind."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import AuthenticationError, Redis

from tests import servers
from tests.stack.orphans import assert_dies_with_its_parent
from worker.errors import StackError
from worker.stack import server
from worker.stack.redis import RedisServer


@pytest.fixture
def folder() -> Iterator[Path]:
    with servers.folder() as path:
        yield path


@pytest.fixture
def started(folder: Path) -> Iterator[RedisServer]:
    redis = RedisServer(folder / 're "d" \\ is')
    redis.start()
    yield redis
    redis.stop()


def test_it_starts_in_a_path_with_spaces_and_quotes(started: RedisServer) -> None:
    with Redis.from_url(started.url) as client:
        client.set("kept", "42")
    assert any((started.data / "store").iterdir())


def test_it_wants_the_password_that_only_its_owner_can_read(started: RedisServer) -> None:
    with (
        Redis.from_url(started.url.replace(started.password, "guess")) as client,
        pytest.raises(AuthenticationError),
    ):
        client.ping()
    for name in ("password", "redis.conf"):
        assert stat.S_IMODE((started.data / name).stat().st_mode) == 0o600, name


def test_it_never_forgets_for_want_of_memory(started: RedisServer) -> None:
    with Redis.from_url(started.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_options_reach_the_server(folder: Path) -> None:
    redis = RedisServer(folder / "redis", options={"appendfsync": "always"})
    redis.start()
    try:
        with Redis.from_url(redis.url) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "always"}
    finally:
        redis.stop()


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_data_and_address_survive_a_restart(started: RedisServer, end: str) -> None:
    url, pid = started.url, started.pid
    with Redis.from_url(url) as client:
        client.set("kept", "42")

    if end == "killed":
        started.kill()
        started.start()
    else:
        started.restart()

    assert started.url == url
    assert started.pid != pid
    with Redis.from_url(url) as client:
        assert client.get("kept") == b"42"


def test_two_run_at_once_though_they_prefer_the_same_port(
    started: RedisServer, folder: Path
) -> None:
    other = RedisServer(folder / "other", port=started.port)
    other.start()
    try:
        assert other.port != started.port
        with Redis.from_url(other.url) as client:
            assert client.info("server")["process_id"] == other.pid
    finally:
        other.stop()


def test_one_folder_serves_one_server(
    started: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two Redis servers on one append-only file would ruin it; Redis itself does not look.
    monkeypatch.setattr(server, "_LET_GO_SECONDS", 0.1)

    with pytest.raises(StackError, match=r"in use by a server that still runs; stop that one"):
        RedisServer(started.data).start()


def test_a_failed_start_shows_the_servers_own_words(folder: Path) -> None:
    redis = RedisServer(folder / "redis", options={"no-such-setting": "1"})

    with pytest.raises(StackError, match=r"(?s)did not start; its log ends with:.*no-such-setting"):
        redis.start()
    assert not redis.alive


def test_it_has_no_address_before_its_start(folder: Path) -> None:
    with pytest.raises(StackError, match="was not started yet"):
        _ = RedisServer(folder / "redis").url


def test_it_dies_with_a_parent_that_was_killed(folder: Path) -> None:
    assert_dies_with_its_parent("worker.stack.redis", "RedisServer", folder / "re dis")
