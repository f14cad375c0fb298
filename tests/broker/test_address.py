"""An address says where Redis is, or who knows, and how to speak to it."""

from __future__ import annotations

import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.sentinel import MasterNotFoundError

from worker.broker.address import _Sentinels, read, with_options
from worker.errors import ConfigurationError, InvalidSettings

#: What a Sentinel says of a living master.
MASTER = {
    "ip": "10.0.0.1", "port": 6379, "is_master": True, "is_sdown": False, "is_odown": False,
    "num-other-sentinels": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("url", "as_kombu_reads_it", "tls"),
    [
        ("redis://:p%40w@h:1/2", "redis://:p%40w@h:1/2", {}),
        ("redis://h", "redis://h:6379/0", {}),
        ("redis://[::1]:1/0?socket_timeout=3", "redis://%3A%3A1:1/0", {}),
        ("redis://u:a;b@h/0?db=3", "redis://u:a%3Bb@h:6379/3", {}),
        ("rediss://h:1/0", "rediss://h:1/0", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h:6379/0", {"ssl_cert_reqs": ssl.CERT_NONE}),
        (
            "rediss://h/0?ssl_cert_reqs=CERT_OPTIONAL&ssl_ca_certs=/a b",
            "rediss://h:6379/0",
            {"ssl_cert_reqs": ssl.CERT_OPTIONAL, "ssl_ca_certs": "/a b"},
        ),
        ("sentinel://:p@h:1;sentinel://:p@i:2/0?master_name=m", "sentinel://:p@h:1/0", {}),
        (
            "sentinel://h/1;sentinel://i/1?master_name=m&ssl_cert_reqs=required",
            "sentinel://h:26379/1",
            {"ssl_cert_reqs": ssl.CERT_REQUIRED},
        ),
    ],
)
def test_kombu_is_told_one_server_and_the_options_of_tls(
    url: str, as_kombu_reads_it: str, tls: dict[str, Any]
) -> None:
    assert read(url).url == as_kombu_reads_it
    assert read(url).tls == tls


def test_sentinels_have_options_of_their_own() -> None:
    address = read(
        "sentinel://:p@h;sentinel://i:2/0?master_name=m&min_other_sentinels=1&socket_timeout=3"
        "&sentinel_username=u&sentinel_password=s&sentinel_ssl_ca_certs=/ca"
    )

    assert address.sentinels == (("h", 26379), ("i", 2))
    assert (address.master_name, address.others) == ("m", 1)
    assert address.options == {"password": "p", "socket_timeout": 3.0}
    assert address.sentinel_options == {
        "username": "u", "password": "s", "ssl_ca_certs": "/ca", "ssl": True
    }  # fmt: skip
    assert "'p'" not in repr(address) and "'s'" not in repr(address)


def test_a_plus_in_a_query_is_one() -> None:
    address = read("sentinel://h/0?master_name=m&sentinel_password=a+b%2Bc%20d")

    assert address.sentinel_options["password"] == "a+b+c d"
    assert read("rediss://h/0?ssl_ca_certs=/a+b").tls["ssl_ca_certs"] == "/a+b"


def test_threads_that_ask_at_once_lose_no_sentinel() -> None:
    # Given two Sentinels, of which the first is away, and two threads that have both seen that
    both = threading.Barrier(2, timeout=30)

    class Away:
        def sentinel_masters(self) -> dict[str, Any]:
            both.wait()
            raise redis.exceptions.ConnectionError

    class There:
        def sentinel_masters(self) -> dict[str, Any]:
            both.wait()
            return {"m": dict(MASTER)}

    sentinels = _Sentinels([])  # type: ignore[no-untyped-call] # redis-py types it in part
    away, there = Away(), There()
    sentinels.sentinels = [away, there]  # type: ignore[list-item] # for all that they are asked
    # When they ask the second at once
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(sentinels.discover_master, "m") for _ in range(2)]
    # Then they hear of the master, and both Sentinels are known still
    assert [one.result() for one in asked] == [("10.0.0.1", 6379)] * 2
    known: list[object] = list(sentinels.sentinels)
    assert known == [there, away]


def test_where_no_sentinel_answers_no_password_is_named() -> None:
    client = read("sentinel://127.0.0.1:1/0?master_name=m&sentinel_password=s3cret").client()

    with pytest.raises(MasterNotFoundError) as raised:
        client.ping()
    assert str(raised.value) == "No master found for 'm'"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h/0?no_such_option=1", "no_such_option"),
        ("redis://h/0?socket_timeout=soon", "socket_timeout"),
        ("redis://h/nought", "no number as its database"),
        ("rediss://h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs is required, optional or none"),
        ("sentinel://h;sentinel://i/1?master_name=m", "another database than in its first"),
        ("sentinel://h?master_name=m&sentinel_no_such=1", "no_such"),
        ("redis://h/0?protocol=4", "protocol"),
        ("rediss://h/0?ssl_min_version=3", "3 is not a valid TLSVersion"),
    ],
)
def test_an_address_that_cannot_be_is_told(url: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=rf"^REDIS_URL .*{said}"):
        read(url)


@pytest.mark.parametrize(
    ("url", "transport_options", "use_ssl", "whole"),
    [
        ("redis://h/0", {"priority_steps": [1]}, None, "redis://h/0"),
        ("redis://h/0", {}, True, "rediss://h/0"),
        (
            "rediss://h/0?ssl_ca_certs=/a",
            {},
            {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_keyfile": None},
            "rediss://h/0?ssl_ca_certs=/a&ssl_cert_reqs=CERT_NONE",
        ),
        ("rediss://h", {}, {"ssl_cert_reqs": None}, "rediss://h?ssl_cert_reqs=none"),
        (
            "sentinel://h;sentinel://i",
            {"master_name": "m", "sentinel_kwargs": {"password": "a&b", "ssl": True}},
            False,
            "sentinel://h;sentinel://i?master_name=m&sentinel_password=a%26b&sentinel_ssl=True",
        ),
        (
            "sentinel://h",
            {"master_name": "m"},
            {"ssl_min_version": ssl.TLSVersion.TLSv1_2},
            "sentinel://h?ssl_min_version=771&ssl_cert_reqs=CERT_REQUIRED&master_name=m",
        ),
    ],
)
def test_what_a_celery_app_says_beside_its_broker_url_is_written_there(
    url: str, transport_options: dict[str, Any], use_ssl: object, whole: str
) -> None:
    assert with_options(url, transport_options, use_ssl) == whole
    read(whole)


@pytest.mark.parametrize("use_ssl", [{"keyfile": "/a"}, {"ssl_ca_data": b"der"}])
def test_what_cannot_stand_in_an_address_is_refused(use_ssl: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"ssl_"):
        with_options("rediss://h", {}, use_ssl)
