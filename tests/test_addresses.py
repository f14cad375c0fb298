"""Addresses of Postgres as libpq, SQLAlchemy and apps write them; psycopg2 gets what was meant."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from psycopg2.extensions import parse_dsn
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from worker.addresses import LIBPQ, _say_left_out, masked, postgres_address

RW = {"target_session_attrs": "read-write"}
UP = {"user": "u", "password": "p", "dbname": "d"}


def asked(address: str) -> dict[str, str]:
    """What psycopg2 is asked for with this address."""
    dialect: Any = PGDialect_psycopg2()  # type: ignore[no-untyped-call] # SQLAlchemy's
    _, options = dialect.create_connect_args(make_url(postgres_address(address)))
    return {name: str(value) for name, value in options.items()}


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:p@h:5432/d",
        "postgresql://u:p%40%2F%3A%25@h/d",
        "postgresql://u@h",
        "postgresql://h",
        "postgresql:///d",
        "postgresql:///d?host=/var/run/postgresql",
        "postgresql:///d?host=%2Fvar%2Frun%2Fpostgresql&port=5433",
        "postgresql://u:p@%2Fvar%2Frun:5433/d",
        "postgresql://u:p@[::1]:5432/d",
        "postgresql://u:p@[2001:db8::1]/d",
        "postgresql://u:p@h/d?user=a&password=b%26",
        "postgresql://u:p@h/my%20base",
        "postgresql://u:p@h/d?options=-csearch_path%3Dx%20-c%20lock_timeout%3D1",
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c&sslkey=/k",
        "postgresql://u:p@h/d?connect_timeout=3&application_name=shop&passfile=/run/pgpass",
        "postgresql:///?service=shop",
        "postgresql://u:p@h:/d",
        "postgresql://h:?sslmode=require",
        "postgresql://u:p@h:5432/d?host=other",
        "postgresql://u:p@h1:1,h2:2/d?target_session_attrs=any",
        "postgresql://u:p@h1:1,[::1]:2,h3:3/d?target_session_attrs=primary",
        "postgresql://u:p@/d?host=a,b&port=1,2&target_session_attrs=any",
    ],
)
def test_what_libpq_reads_is_read_as_libpq_reads_it(address: str) -> None:
    meant = {name: str(value) for name, value in parse_dsn(address).items()}
    found = asked(address)
    if "host=other" in address:  # the port goes with the host that it stood beside
        meant.pop("port")
    assert found == meant


@pytest.mark.parametrize(
    "scheme",
    ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+asyncpg",
     "postgresql+psycopg_async", "postgresql+pg8000", "POSTGRESQL", "db+postgresql", "psql",
     "pgsql", "postgis", "timescale", "timescalegis"],
)  # fmt: skip
def test_any_driver_will_do(scheme: str) -> None:
    assert postgres_address(f"{scheme}://u:p%40@h:5432/d?sslmode=require") == (
        "postgresql+psycopg2://u:p%40@h:5432/d?sslmode=require"
    )


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("postgresql://u:p@h1:1,h2:2/d", {"host": "h1,h2", "port": "1,2", **UP, **RW}),
        ("postgresql://u:p@h1,h2:2/d", {"host": "h1,h2", "port": ",2", **UP, **RW}),
        ("postgresql://u:p@/d?host=a:1&host=b:2", {"host": "a,b", "port": "1,2", **UP, **RW}),
        ("postgresql://u:p@/d?host=a:1&host=[::1]:2", {"host": "a,::1", "port": "1,2", **UP, **RW}),
        (
            "postgresql://u:p@/d?host=a&host=b&port=1&port=2",
            {"host": "a,b", "port": "1,2", **UP, **RW},
        ),
        ("postgresql://u:p@/d?host=a,b&port=1", {"host": "a,b", "port": "1,1", **UP, **RW}),
        ("postgresql://u:p@/d?host=::1", {"host": "::1", **UP}),
        ("postgresql://u:p@/d?host=a:7", {"host": "a", "port": "7", **UP}),
        ("postgresql://u:p@h/d?ssl=require", {"host": "h", "sslmode": "require", **UP}),
        ("postgresql://u:p@h/d?ssl=true", {"host": "h", "sslmode": "require", **UP}),
        (
            "postgresql://u:p@h/d?ssl=true&sslmode=verify-full",
            {"host": "h", "sslmode": "verify-full", **UP},
        ),
        ("postgresql://u:p@h/d?sslmode=&sslmode=prefer", {"host": "h", "sslmode": "prefer", **UP}),
    ],
)
def test_what_others_write_is_read_as_they_mean_it(address: str, meant: dict[str, str]) -> None:
    assert asked(address) == meant


def test_parameters_of_others_are_left_out_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given what Prisma, SQLAlchemy's users, asyncpg and Django write
    _say_left_out.cache_clear()
    address = (
        "postgresql://u:p@h/d?schema=s3cret&pgbouncer=true&connection_limit=5&sslaccept=strict"
        "&charset=utf8&pool_size=9&prepared_statement_cache_size=0&sslmode=require&s%0A3=1"
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert asked(address) == {"host": "h", "sslmode": "require", **UP}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(
        "ignored: charset, connection_limit, pgbouncer, pool_size, prepared_statement_cache_size,"
        " one that is no word, schema, sslaccept"
    )


def test_libpq_knows_what_it_is_said_to_know() -> None:
    for name in LIBPQ:
        parse_dsn(f"{name}=1")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("host=h dbname=d password=s3cret", "expected postgresql://user:password@host:port/name"),
        ("mysql://u:s3cret@h/d", "expected postgresql://"),
        ("postgresql:/u:s3cret@h/d", "expected postgresql://"),
        ("postgresql://u:s3cret@h:port/d", "the port is no number from 0 to 65535"),
        ("postgresql://u:s3cret@h:1,i:99999/d", "the port is no number from 0 to 65535"),
        ("postgresql://u:s3cret@/d?host=a&port=x", "the port is no number"),
        ("postgresql://u:s3cret@/d?host=a,b,c&port=1,2", "as many ports as hosts, or one"),
        ("postgresql://u:s3@cret@h/d", "write an @ in the user or password as %40"),
        ("postgresql://u:s3/cret@h/d", "as %XX"),
        ("postgresql://u:s3?cret@h/d", "as %XX"),
        ("postgresql://u:s3#cret@h/d", "write # as %23"),
        ("postgresql://u:s3[cret@h/d", "as %XX"),
        ("postgresql://u:s3cret@::1/d", "port"),
        ("postgresql://u:s3cret@h/d?ssl=maybe", "write ssl=… as sslmode=require"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_its_password(address: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")) as told:
        postgres_address(address)
    for text in (str(told.value), masked(address)):
        assert "cret" not in text
        assert "s3" not in text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("mysql://u:pw@db:3306/shop?password=pw", "mysql://***@db:3306/shop"),
        ("postgresql://u:pw@a:1,b:2/d", "postgresql://***@a:1,b:2/d"),
        ("http://h/x", "http://h/x"),
        ("redis://:p/w@h", "redis://***"),
        ("sentinel://:pw@h:1;redis://:pw@i", "sentinel://***@h:1;redis://***@i"),
        ("pw", "***"),
        ("", "***"),
        ("p w://h", "***"),
        ("postgresql://u:pw@h/d\n@", "postgresql://***"),
    ],
)
def test_a_wrong_address_is_shown_as_far_as_it_is_no_secret(address: str, shown: str) -> None:
    assert masked(address) == shown
