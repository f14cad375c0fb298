"""What the address of a store must look like, told without its password."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

_IDENTIFIER: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def check_address(url: str) -> None:
    """Refuse what the drivers would misread; their errors would show parts of the password.

    Raises:
        ValueError: saying what to write instead.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # which quotes what it could not read
        raise ValueError("write what is no letter or digit in the password as %XX") from None
    if "@" in parts.netloc.rpartition("@")[0]:
        raise ValueError("write an @ in the user or password as %40")
    try:
        parts.port  # noqa: B018 -- reading it is the check
    except ValueError:
        raise ValueError("the port is no number from 0 to 65535") from None


def postgres_address(url: str) -> str:
    """The address of Postgres as SQLAlchemy takes it, for psycopg2.

    Raises:
        ValueError: saying what to write instead.
    """
    scheme, separator, rest = url.partition("://")
    if scheme not in {"postgres", "postgresql", "postgresql+psycopg2"} or not separator:
        raise ValueError("expected postgresql://user:password@host:port/name")
    check_address("postgresql://" + rest)
    return "postgresql+psycopg2://" + rest


def check_schema_name(name: str) -> str:
    """The name of a Postgres schema that is plain, and not others'.

    Raises:
        ValueError: saying what to write instead.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError("expected at most 63 of a-z, 0-9 and _, and no digit first")
    if name.startswith("pg_") or name in {"public", "information_schema"}:
        raise ValueError("it is others'; expected a schema of celery-ledger's own")
    return name


def check_redis(url: str) -> None:
    """Refuse what is no address of Redis, plain, by TLS or by Sentinels.

    Raises:
        ValueError: saying what to write instead.
    """
    if url.startswith("sentinel://"):
        check_sentinels(url)
    elif not url.startswith(("redis://", "rediss://")):
        raise ValueError("expected redis://:password@host:port/0, rediss://… or sentinel://…")
    else:
        check_address(url)


def check_sentinels(urls: str) -> None:
    """Refuse addresses of Sentinels that do not say which Redis is meant.

    Raises:
        ValueError: saying what to write instead.
    """
    for url in urls.split(";"):
        if not url.startswith("sentinel://"):
            raise ValueError("expected sentinel://host:26379;sentinel://host:26379/0?master_name=…")
        check_address(url)
    if not any(parse_qs(urlsplit(url).query).get("master_name") for url in urls.split(";")):
        raise ValueError("expected ?master_name=… at the end: the name that Sentinel has for Redis")
