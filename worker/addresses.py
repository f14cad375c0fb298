"""What the address of a store must look like, told without its password."""

from __future__ import annotations

import functools
import logging
import re
from typing import Final
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit

logger = logging.getLogger(__name__)

#: The schemes of libpq and SQLAlchemy, whatever driver the app uses, Celery's for results, and
#: those that Django's readers of DATABASE_URL know for Postgres itself.
_POSTGRES: Final = re.compile(
    r"(db\+)?postgres(ql)?(\+\w+)?|p(g)?sql|postgis|timescale(gis)?", re.ASCII
)
_LAST_PORT: Final = 65535
_PLAIN_NAME: Final = re.compile(r"\w{1,40}")
#: What libpq takes. Source: PostgreSQL 18's documentation, 32.1.2, Parameter Key Words.
LIBPQ: Final = frozenset({
    "host", "hostaddr", "port", "dbname", "user", "password", "passfile", "require_auth",
    "channel_binding", "connect_timeout", "client_encoding", "options", "application_name",
    "fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval",
    "keepalives_count", "tcp_user_timeout", "gssencmode", "sslmode",
    "requiressl", "sslnegotiation", "sslcompression", "sslcert", "sslkey", "sslpassword",
    "sslcertmode", "sslrootcert", "sslcrl", "sslcrldir", "sslsni", "requirepeer",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib",
    "gssdelegation", "service", "target_session_attrs", "load_balance_hosts",
})  # fmt: skip

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
    """The address of Postgres as SQLAlchemy takes it for psycopg2, of one as libpq, SQLAlchemy and
    apps write it: several hosts, a folder of sockets, another driver, parameters of others.

    With several hosts and no word on it, the connection goes to the one that takes writes. What
    libpq does not know is left out, and named in the log.

    Raises:
        ValueError: saying what to write instead.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not _POSTGRES.fullmatch(scheme.lower()) or not separator:
        raise ValueError("expected postgresql://user:password@host:port/name")
    authority, path, query = _parts(rest)
    user, at, netloc = authority.rpartition("@")
    if "@" in user:
        raise ValueError("write an @ in the user or password as %40")
    places = [_place(part) for part in netloc.split(",")] if netloc else []
    check_address(f"postgresql://{user}{at}" + ("" if "%" in netloc else netloc.split(",")[0]))
    known, changed = _parameters(query)
    asked = [value for name, value in parse_qsl(query) if name == "host"]
    if asked:
        ports = [value for name, value in parse_qsl(query) if name == "port"]
        places = _asked_places(asked, ",".join(ports).split(",") if ports else [])
    if len(places) > 1:
        known.setdefault("target_session_attrs", "read-write")
    is_plain = len(places) <= 1 and not asked and "%" not in netloc + path
    if is_plain and not changed and not netloc.endswith(":"):
        return "postgresql+psycopg2://" + rest
    netloc = netloc.removesuffix(":")  # a port that a template left empty is the usual one
    if not is_plain:
        netloc = ""
        known |= _by_name(places)
    if "%" in path:  # which SQLAlchemy would take as it is
        known["dbname"], path = unquote(path[1:]), "/"
    written = urlencode(known, quote_via=quote, safe="/:,")
    return f"postgresql+psycopg2://{user}{at}{netloc}{path}" + (f"?{written}" if written else "")


def _parts(rest: str) -> tuple[str, str, str]:
    """Authority, path with its slash, and query of what follows "://"."""
    if "#" in rest:
        raise ValueError("write # as %23")
    front, _, query = rest.partition("?")
    authority, slash, path = front.partition("/")
    if "@" in path or ("@" in query and "@" not in authority):
        raise ValueError("write what is no letter or digit in the password as %XX")
    return authority, slash + path, query


def _place(text: str) -> tuple[str, str]:
    """Host and port of `host`, `host:port`, `[::1]` or `[::1]:port`."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(.*))?", text)
    if not found:
        raise ValueError("write an IPv6 address as [::1]:5432")
    port = found[2] or ""
    if port and not (port.isascii() and port.isdecimal() and int(port) <= _LAST_PORT):
        raise ValueError("the port is no number from 0 to 65535")
    return unquote(found[1]).strip("[]"), port


def _asked_places(asked: list[str], ports: list[str]) -> list[tuple[str, str]]:
    """The hosts of libpq's `?host=a,b&port=1,2`, or of SQLAlchemy's `?host=a:1&host=b:2`."""
    texts = [text for value in asked for text in value.split(",")]
    if not ports:
        return [(text, "") if _is_bare(text) else _place(text) for text in texts]
    if len(ports) not in {1, len(texts)}:
        raise ValueError("expected as many ports as hosts, or one")
    ports = ports * len(texts) if len(ports) == 1 else ports
    return [
        (text.strip("[]"), _place(f"h:{port}")[1]) for text, port in zip(texts, ports, strict=True)
    ]


def _is_bare(host: str) -> bool:
    """Whether it is a folder of sockets, or an IPv6 address without brackets."""
    return host.startswith("/") or (host.count(":") > 1 and "[" not in host)


def _by_name(places: list[tuple[str, str]]) -> dict[str, str]:
    hosts = {"host": ",".join(host for host, _ in places)} if any(h for h, _ in places) else {}
    ports = ",".join(port for _, port in places)
    return hosts | ({"port": ports} if ports.strip(",") else {})


def _parameters(query: str) -> tuple[dict[str, str], bool]:
    """The parameters that libpq knows, the last of each name; whether others were left out."""
    known: dict[str, str] = {}
    left: list[str] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "ssl":  # JDBC's, asyncpg's and libpq's own word for sslmode
            known.setdefault("sslmode", _sslmode(value))
        elif name not in LIBPQ:
            left.append(name)
        elif value:
            known[name] = value
    if left:
        _say_left_out(tuple(sorted(set(left))))
    return known, bool(left) or query != urlencode(known, quote_via=quote, safe="/:,")


def _sslmode(value: str) -> str:
    modes = {"true": "require", "1": "require", "on": "require", "false": "disable",
             "0": "disable", "off": "disable"}  # fmt: skip
    mode = modes.get(value.lower(), value)
    if mode not in {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}:
        raise ValueError("write ssl=… as sslmode=require or another mode of libpq")
    return mode


@functools.cache
def _say_left_out(names: tuple[str, ...]) -> None:
    """Once in a process; never the values, which may be secret."""
    logger.warning(
        "DATABASE_URL has parameters that libpq does not know, and which are ignored: %s",
        ", ".join(name if _PLAIN_NAME.fullmatch(name) else "one that is no word" for name in names),
    )


def masked(url: str) -> str:
    """An address that may be wrong, for its fault's report: no password, and nothing of which it is
    not sure that it is none."""
    first, *others = re.split(r";(?=\w+://)", url)
    if others:
        return ";".join(masked(part) for part in (first, *others))
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return "***"
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr] # it fits any text
    _, at, hosts = authority.rpartition("@")
    if "@" in tail or not re.fullmatch(r"[\w.,:%\[\]-]*", hosts):
        return f"{scheme}://***"
    path = tail.partition("?")[0].partition("#")[0]
    return f"{scheme}://{'***@' if at else ''}{hosts}{path}"


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


def redis_address(url: str) -> str:
    """The address of Redis, plain, by TLS or by Sentinels, as it is.

    Raises:
        ValueError: saying what to write instead.
    """
    if url.startswith("sentinel://"):
        check_sentinels(url)
    elif not url.startswith(("redis://", "rediss://")):
        raise ValueError("expected redis://:password@host:port/0, rediss://… or sentinel://…")
    else:
        check_address(url)
    return url


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
