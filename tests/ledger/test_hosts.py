"""Ways to Postgres on real servers: a folder of sockets, several hosts, one of them a standby; and
what a server refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg2
import pytest

from tests import servers
from tests.ledger.test_migrate import as_setting
from worker.errors import LedgerRefused, LedgerUnavailable
from worker.ledger.database import Ledger
from worker.ledger.start import Start
from worker.stack.postgres import PostgresServer

_PORT = "SELECT inet_server_port()"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Two servers with one role; the first has a folder of sockets."""
    with servers.folder() as one, servers.folder() as two, servers.folder() as sockets:
        sockets.chmod(0o777)
        listening = {"unix_socket_directories": str(sockets), "max_connections": "20"}
        first = PostgresServer(one / "postgres", options=listening)
        second = PostgresServer(two / "postgres", options={"max_connections": "20"})
        try:
            for server in (first, second):
                server.start()
                _run(server, "CREATE ROLE shop LOGIN PASSWORD 'p@ss/w:d'")
                _run(server, "CREATE TABLE notes (t text); GRANT ALL ON notes TO shop")
            yield first, second
        finally:
            first.stop()
            second.stop()


def _run(server: PostgresServer, statement: str) -> None:
    connection = psycopg2.connect(server.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def _ask(address: str, statement: str = _PORT) -> object:
    ledger = Ledger(as_setting(address), connections=1, connect_timeout=2)
    try:
        ((answer,),) = ledger.execute(statement)
        return answer
    finally:
        ledger.close()


def _shop(places: str, query: str = "") -> str:
    return f"postgresql://shop:{quote('p@ss/w:d', safe='')}@{places}/ledger{query}"


def test_a_folder_of_sockets(pair: tuple[PostgresServer, PostgresServer]) -> None:
    server, _ = pair
    folder = _ask(server.url, "SHOW unix_socket_directories")
    where = quote(str(folder), safe="")
    for address in (
        _shop("", f"?host={folder}&port={server.port}"),
        _shop("", f"?host={where}&port={server.port}"),
        _shop(f"{where}:{server.port}"),
    ):
        assert _ask(address, "SELECT inet_server_port() IS NULL") is True


def test_of_two_hosts_the_one_that_answers(pair: tuple[PostgresServer, PostgresServer]) -> None:
    _, server = pair
    for address in (
        _shop(f"127.0.0.1:1,127.0.0.1:{server.port}"),
        _shop("", f"?host=127.0.0.1:1&host=127.0.0.1:{server.port}"),
        _shop("", f"?host=127.0.0.1,127.0.0.1&port=1,{server.port}"),
    ):
        assert _ask(address) == server.port


def test_after_a_failover_the_primary(pair: tuple[PostgresServer, PostgresServer]) -> None:
    # Given two hosts of which the second takes no writes, as a standby
    first, second = pair
    places = f"127.0.0.1:{second.port},127.0.0.1:{first.port}"
    _standby(second, "on")
    ledger = Ledger(as_setting(_shop(places)), connections=1)
    assert ledger.execute(_PORT) == [(first.port,)]

    # When they change places, then a write goes to the one that takes it, and all that follows
    _standby(second, "off")
    _standby(first, "on")
    ledger.execute("INSERT INTO public.notes VALUES ('kept')")
    assert ledger.execute(_PORT) == [(second.port,)]
    assert ledger.execute("SELECT t FROM public.notes") == [("kept",)]
    ledger.close()
    _standby(first, "off")

    # And an app that wants any host gets the first
    _standby(second, "on")
    assert _ask(_shop(places, "?target_session_attrs=any")) == second.port
    _standby(second, "off")


def _standby(server: PostgresServer, on: str) -> None:
    connection = psycopg2.connect(server.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute(f"ALTER SYSTEM SET default_transaction_read_only = {on}")
        cursor.execute("SELECT pg_reload_conf()")
    connection.close()
    while True:  # the postmaster hands on what it has read
        seen = psycopg2.connect(server.url)
        with seen.cursor() as cursor:
            cursor.execute("SHOW default_transaction_read_only")
            is_done = cursor.fetchone() == (on,)
        seen.close()
        if is_done:
            return


def test_none_of_two_hosts_says_what_each_said() -> None:
    with pytest.raises(LedgerUnavailable, match=r"port 1 failed: .*; .*port 2 failed: ") as told:
        _ask(_shop("127.0.0.1:1,127.0.0.1:2"))
    assert "p@ss" not in str(told.value)
    assert not isinstance(told.value, LedgerRefused)


def test_options_and_the_like_reach_postgres(pair: tuple[PostgresServer, PostgresServer]) -> None:
    server, _ = pair
    query = "?options=-clock_timeout%3D7s%20-c%20work_mem%3D5MB&sslmode=disable&pgbouncer=true"
    address = _shop(f"127.0.0.1:{server.port}", query)
    assert _ask(address, "SHOW lock_timeout") == "7s"
    assert _ask(address, "SHOW work_mem") == "5MB"


@pytest.mark.parametrize("query", ["client_encoding=latin1", "options=-cclient_encoding%3Dlatin1"])
def test_any_text_reaches_postgres_whatever_encoding_is_asked_for(
    pair: tuple[PostgresServer, PostgresServer], query: str
) -> None:
    address = _shop(f"127.0.0.1:{pair[0].port}", f"?{query}")
    assert _ask(address, "SELECT 'zażółć 🚀'") == "zażółć 🚀"


@pytest.mark.parametrize(
    ("pattern", "by", "told"),
    [
        (r":[^:@]*@", ":wrong@", "password authentication failed"),
        (r":[^:@]*@", "@", "no password supplied"),
        (r"//\w+:", "//nobody:", "password authentication failed"),
        (r"/\w+$", "/nowhere", "does not exist"),
        (r"$", "?sslmode=require", "does not support SSL"),
        (r"$", "?sslmode=REQUIRE", "invalid sslmode value"),
        (r"$", "?ssl_min_protocol_version=1", "invalid .* value"),
        (r"$", "?keepalives=x", "invalid integer value"),
        (r"$", "?options=-cTimeZone%3DNowhere", "invalid value for parameter"),
        (r"$", "?options=-cno_such%3D1", "unrecognized configuration parameter"),
        (r"$", "?options=-cwork_mem", "requires a value"),
        (r"$", "?options=work_mem", "invalid command-line argument"),
        (r"$", "?service=nowhere", "service .* not found"),
        (r"$", "?hostaddr=nowhere", "could not parse network address"),
        (r"$", "?channel_binding=require", "channel binding required"),
        (r"$", "?require_auth=md5", "authentication method requirement"),
        (r"$", "?gssencmode=require", "GSSAPI encryption required"),
    ],
    ids=[
        "password",
        "no password",
        "role",
        "database",
        "tls",
        "mode",
        "version",
        "number",
        "zone",
        "setting",
        "no value",
        "argument",
        "service",
        "address",
        "binding",
        "method",
        "gss",
    ],
)
def test_what_postgres_refuses_is_no_outage(
    pair: tuple[PostgresServer, PostgresServer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pattern: str,
    by: str,
    told: str,
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    good = pair[0].url
    address = re.sub(pattern, by, good, count=1) if pattern != "$" else good + by
    ledger = Ledger(as_setting(address), connections=1)
    with pytest.raises(LedgerRefused, match=told) as refused:
        ledger.execute("SELECT 1")
    assert refused.value.exit_code == 2
    assert (urlsplit(good).password or "") not in str(refused.value)

    # A worker that starts waits, and says so once: the password may be on its way to change
    start = Start(0)
    assert not any(start.goes(lambda: ledger.execute("SELECT 1")) for _ in range(3))
    assert start.waits_for == "Postgres refuses the role, its password or the database."
    assert len([record for record in caplog.records if "Waiting" in record.message]) == 1
    ledger.close()


def test_a_missing_right_is_told(pair: tuple[PostgresServer, PostgresServer]) -> None:
    server, _ = pair
    _run(server, "CREATE TABLE IF NOT EXISTS secret ()")
    with pytest.raises(LedgerRefused, match="permission denied for table secret"):
        _ask(_shop(f"127.0.0.1:{server.port}"), "SELECT count(*) FROM public.secret")
