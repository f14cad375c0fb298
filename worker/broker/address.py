"""Addresses of Redis: one text says where it is, or who knows, and how to speak to it.

`sentinel://` is written as Celery has it, `sentinel://host:26379;sentinel://host:26379/0`, and what
Celery takes from other settings stands in its query: `master_name` and redis-py's options, for the
Sentinels themselves with `sentinel_` before their names.
"""

from __future__ import annotations

import copy
import enum
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url, to_bool
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from worker.errors import ConfigurationError, InvalidSettings

_SENTINEL: Final = "sentinel"
_SENTINEL_PORT: Final = 26379
#: What the names of options for the Sentinels themselves begin with.
_TO_SENTINELS: Final = "sentinel_"
#: kombu's transport options that belong to the address of Sentinels.
_OF_THE_MASTER: Final = ("master_name", "min_other_sentinels")
#: As redis-py and as kombu spell it.
_CERT_REQS: Final = {
    **{mode.name.removeprefix("CERT_").lower(): mode for mode in ssl.VerifyMode},
    **{mode.name: mode for mode in ssl.VerifyMode},
}


class _Sentinels(Sentinel):
    """redis-py's, for many threads: it swaps places in its list while it asks, and two that do so
    at once may lose one for good. Its words of failure may name the Sentinels' password."""

    def discover_master(self, service_name: str) -> Any:
        """Host and port of the master.

        Raises:
            MasterNotFoundError: no Sentinel answers and names a living one.
        """
        own = copy.copy(self)
        own.sentinels = list(self.sentinels)
        try:
            return Sentinel.discover_master(own, service_name)  # type: ignore[no-untyped-call] # ditto
        except MasterNotFoundError:
            raise MasterNotFoundError(f"No master found for {service_name!r}") from None
        finally:
            self.sentinels = own.sentinels  # the one that answered goes first


@dataclass(frozen=True, slots=True)
class Address:
    """What an address says.

    Attributes:
        scheme: redis, rediss or sentinel.
        options: how to speak to Redis, in redis-py's words, user, password and database among them.
        sentinels: who knows where Redis is: host and port of each; none where the address knows.
        master_name: what these call it.
        others: how many other Sentinels one must see to be believed.
        sentinel_options: how to speak to them.
    """

    scheme: str
    options: Mapping[str, Any] = field(repr=False)  # they hold passwords
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str = ""
    others: int = 0
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def tls(self) -> dict[str, Any]:
        """The options of TLS, none without; it verifies unless they say otherwise."""
        options = {name: value for name, value in self.options.items() if name.startswith("ssl_")}
        if options or self.scheme == "rediss":
            return {"ssl_cert_reqs": ssl.CERT_REQUIRED, **options}
        return {}

    @property
    def url(self) -> str:
        """The address as kombu reads it: of one server, without options.

        kombu turns from one of several to the next, and then forgets which transport it was given.
        """
        options = self.options
        user, password = (
            quote(options.get(name, ""), safe="") for name in ("username", "password")
        )
        server = (options.get("host", "127.0.0.1"), options.get("port", 6379))
        host, port = self.sentinels[0] if self.sentinels else server
        login = f"{user}:{password}@" if user or password else ""
        place = f"{quote(host, safe='')}:{port}"
        return f"{self.scheme}://{login}{place}/{options.get('db', 0)}"

    def client(self, **options: Any) -> redis.Redis:
        """A client of the server, or of whichever is the master when it connects.

        Args:
            options: redis-py's; those of the address go before.
        """
        options |= {**self.options, **self.tls}
        if self.sentinels:
            return self.master(**options, ssl=bool(self.tls))
        if self.tls:
            options["connection_class"] = redis.SSLConnection
        return redis.Redis.from_pool(redis.ConnectionPool(**options))

    def master(self, **options: Any) -> redis.Redis:
        """A client with these options alone that asks the Sentinels at each connect."""
        asking = {name: options[name] for name in options if name.startswith("socket_")}
        # The next Sentinel is the second try: redis-py would wait before one of its own.
        asking |= {"retry": Retry(NoBackoff(), 0), **self.sentinel_options}
        sentinels = _Sentinels(  # type: ignore[no-untyped-call] # redis-py types it in part
            self.sentinels,
            min_other_sentinels=self.others,
            sentinel_kwargs=asking,
            **options,
        )
        client: redis.Redis = sentinels.master_for(self.master_name)  # type: ignore[no-untyped-call] # ditto
        return client

    def __json__(self) -> str:
        # `inspect stats` and Flower read a worker's transport options as JSON.
        return self.scheme


def read(url: str) -> Address:
    """Read an address whose outline `Settings` has checked.

    Raises:
        InvalidSettings: it says something that cannot be.
    """
    try:
        address = _sentinels(url.split(";")) if _is_sentinel(url) else _one(url)
        client = address.client()
        client.connection_pool.make_connection()  # opens nothing: it reads the options
    except (TypeError, ValueError, redis.exceptions.RedisError) as exc:
        raise InvalidSettings(f"REDIS_URL has an option that cannot be: {exc}.") from None
    return address


def _one(url: str) -> Address:
    parts = urlsplit(url)
    _check_databases([parts.path.strip("/")])
    return Address(parts.scheme, _typed(parts.netloc + parts.path, _query_of(parts.query)))


def _sentinels(urls: Sequence[str]) -> Address:
    parts = [urlsplit(url) for url in urls]
    _check_databases([part.path.strip("/") for part in parts])
    ours: dict[str, str] = {}
    of_sentinels: list[tuple[str, str]] = []
    of_redis: list[tuple[str, str]] = []
    for name, value in (pair for part in parts for pair in _query_of(part.query)):
        if name in _OF_THE_MASTER:
            ours.setdefault(name, value)
        elif name.startswith(_TO_SENTINELS):
            of_sentinels.append((name.removeprefix(_TO_SENTINELS), value))
        else:
            of_redis.append((name, value))
    login, at, _ = parts[0].netloc.rpartition("@")
    asking = _typed("", of_sentinels)
    if "ssl" in asking or any(name.startswith("ssl_") for name in asking):
        asking["ssl"] = to_bool(asking.get("ssl", "true"))  # type: ignore[no-untyped-call] # ditto
    return Address(
        _SENTINEL,
        _typed(login + at + parts[0].path, of_redis),
        tuple((part.hostname or "127.0.0.1", part.port or _SENTINEL_PORT) for part in parts),
        ours.get("master_name", ""),
        int(ours.get("min_other_sentinels", 0)),
        asking,
    )


def _query_of(query: str) -> list[tuple[str, str]]:
    """Names and values; a plus is one, as in a password, and no blank."""
    return parse_qsl(query.replace("+", "%2B"))


def client_at(url: str, timeout: float) -> redis.Redis:
    """A client for the doorbells; it opens nothing yet.

    Args:
        url: `redis://…`, `rediss://…` or `sentinel://…`.
        timeout: seconds until a silent Redis counts as away.

    Raises:
        InvalidSettings: the address says something that cannot be.
    """
    return read(url).client(
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        socket_keepalive=True,
        health_check_interval=25,
        retry=Retry(NoBackoff(), 1),  # a connection that died while idle is met here
    )


def close(client: redis.Redis) -> None:
    """Close a client's connections, those to Sentinels too."""
    client.close()
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager else ():
        sentinel.close()


def with_options(url: str, transport_options: Mapping[str, Any], use_ssl: object) -> str:
    """A Celery app's `broker_url` with what `broker_transport_options` and `broker_use_ssl` add.

    Raises:
        ConfigurationError: one of them cannot stand in an address.
    """
    options: dict[str, Any] = dict(use_ssl) if isinstance(use_ssl, Mapping) else {}
    for name in options:
        if not name.startswith("ssl_"):
            raise ConfigurationError(
                f"broker_use_ssl has {name!r}; Redis's options begin with ssl_, such as"
                " ssl_ca_certs."
            )
    if use_ssl and url.startswith("redis://"):
        url = "rediss" + url.removeprefix("redis")
    if _is_sentinel(url):
        if use_ssl:
            options.setdefault("ssl_cert_reqs", ssl.CERT_REQUIRED)
        options |= {name: transport_options.get(name) for name in _OF_THE_MASTER}
        asking = transport_options.get("sentinel_kwargs") or {}
        options |= {_TO_SENTINELS + name: value for name, value in asking.items()}
    said = {name: _written(name, value) for name, value in options.items()}
    told = {name: value for name, value in said.items() if value is not None}
    query = urlencode(told, quote_via=quote)
    if not query:
        return url
    return f"{url}{'&' if '?' in url.rpartition(';')[2] else '?'}{query}"


def _written(name: str, value: object) -> str | None:
    """A value as it stands in a query; `None` for one that says nothing."""
    if name.endswith("ssl_cert_reqs") and not isinstance(value, str):
        return "none" if value is None else ssl.VerifyMode(cast(int, value)).name  # as redis-py
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, enum.IntEnum):
        return str(value.value)
    if isinstance(value, (bool, int, float)):
        return str(value)
    raise ConfigurationError(
        f"The broker's option {name} must be a text, a number or a bool: a durable app keeps it in"
        f" the address, and {type(value).__name__} cannot stand there."
    )


def _typed(place: str, query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Options as redis-py reads them; of two with one name the first, as there."""
    options: dict[str, Any] = parse_url(  # type: ignore[no-untyped-call] # ditto
        f"redis://{place}?{urlencode(list(query))}"
    )
    if "ssl_cert_reqs" in options:
        mode = _CERT_REQS.get(options["ssl_cert_reqs"])
        if mode is None:
            raise ValueError("ssl_cert_reqs is required, optional or none")
        options["ssl_cert_reqs"] = mode
    if "ssl_min_version" in options:
        ssl.TLSVersion(options["ssl_min_version"])  # else it fails at each connect
    return options


def _check_databases(names: list[str]) -> None:
    for name in names:
        if name and not (name.isascii() and name.isdigit()):
            raise InvalidSettings(
                "REDIS_URL names no number as its database; expected redis://host:port/0."
            )
    if {name for name in names if name} - {names[0] or "0"}:
        raise InvalidSettings(
            "REDIS_URL names another database than in its first sentinel:// address, which is the"
            " one that counts; name the same in each."
        )


def _is_sentinel(url: str) -> bool:
    return url.startswith(f"{_SENTINEL}://")
