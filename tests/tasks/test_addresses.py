"""Which addresses may be reached, and that nothing else ever is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tasks.addresses import AddressRefused, addresses_of, refused_kind
from worker.tasks.transport import PinnedBackend, deadline

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"]
REFUSED = {
    "0.0.0.0": "unspecified",
    "10.1.2.3": "private",
    "100.64.0.1": "shared",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "169.254.169.254": "link-local",
    "172.31.255.255": "private",
    "192.0.0.8": "reserved",
    "192.168.0.1": "private",
    "198.18.0.1": "reserved",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "255.255.255.255": "reserved",
    "168.63.129.16": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::7f00:1": "mapped",
    "::ffff:127.0.0.1": "mapped",
    "::ffff:8.8.8.8": "mapped",
    "::ffff:0:127.0.0.1": "mapped",
    "64:ff9b::127.0.0.1": "loopback",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b:1::8.8.8.8": "tunnel",
    "2002:7f00:1::": "tunnel",
    "2001:0:808:808::1": "tunnel",
    "2001:db8::1": "documentation",
    "fc00::1": "private",
    "fd00:ec2::254": "private",
    "fe80::1": "link-local",
    "fe80::1%1": "link-local",
    "2606:4700::1%1": "link-local",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "4000::1": "reserved",
    "100::1": "reserved",
    "5f00::1": "reserved",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_reached(address: str) -> None:
    assert refused_kind(address) is None


@pytest.mark.parametrize(("address", "kind"), REFUSED.items())
def test_any_other_may_not(address: str, kind: str) -> None:
    assert kind in (refused_kind(address) or "")


@given(st.ip_addresses())
def test_nothing_that_python_knows_as_special_passes(address: IPv4Address | IPv6Address) -> None:
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or not address.is_global
    )
    nat64 = str(address).startswith("64:ff9b::")  # reserved to Python; judged by what is inside
    assert not special or nat64 or refused_kind(str(address)) is not None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "localhost",
        "::1",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
    ],
)
def test_every_way_to_write_loopback_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="WORKER_HTTP_ALLOW_PRIVATE"):
        addresses_of(host, 80, allow_private=False, timeout=5)


def test_one_refused_address_refuses_the_host() -> None:
    def lookup(_host: str, _port: int) -> list[str]:
        return ["8.8.8.8", "10.0.0.1"]

    with pytest.raises(AddressRefused, match=r"mixed\.example has a private address"):
        addresses_of("mixed.example", 80, allow_private=False, timeout=5, lookup=lookup)


def test_a_resolver_that_does_not_answer_is_given_up() -> None:
    stuck = threading.Event()

    def lookup(_host: str, _port: int) -> list[str]:
        stuck.wait()
        return []

    with pytest.raises(TimeoutError):
        addresses_of("slow.example", 80, allow_private=False, timeout=0.01, lookup=lookup)
    stuck.set()


@pytest.mark.parametrize("host", ["a" * 300, "two..dots", "\u00e4..\u00e4"])
def test_what_is_no_host_name_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError):
        addresses_of(host, 80, allow_private=True, timeout=5)


class Recorder(httpcore.NetworkBackend):
    """Connects nowhere; notes where to, and fails for the addresses it is told."""

    def __init__(self, *, dead: Iterable[str] = ()) -> None:
        self.asked: list[tuple[str, float | None]] = []
        self._dead = set(dead)

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any
    ) -> httpcore.NetworkStream:
        self.asked.append((host, timeout))
        if host in self._dead:
            raise httpcore.ConnectTimeout
        return httpcore.MockStream([])

    @property
    def hosts(self) -> list[str]:
        return [host for host, _ in self.asked]


def rebinding() -> Iterator[list[str]]:
    """A name that is public when it is judged, and loopback when it is asked again."""
    yield ["8.8.8.8"]
    while True:
        yield ["127.0.0.1"]


def test_a_connection_goes_to_the_address_that_was_judged() -> None:
    # Given a name whose address changes between two lookups
    answers = rebinding()
    recorder = Recorder()
    backend = PinnedBackend(
        allow_private=False, lookup=lambda _h, _p: next(answers), inner=recorder
    )
    # When it is connected to, I expect the first answer, and no second lookup
    backend.connect_tcp("rebinding.example", 80)
    assert recorder.hosts == ["8.8.8.8"]
    # And a new connection is judged anew
    with pytest.raises(AddressRefused):
        backend.connect_tcp("rebinding.example", 80)
    assert recorder.hosts == ["8.8.8.8"]


def test_a_dead_address_leaves_time_for_the_next() -> None:
    recorder = Recorder(dead=["8.8.8.8"])
    backend = PinnedBackend(
        allow_private=False, lookup=lambda _h, _p: ["8.8.8.8", "8.8.4.4"], inner=recorder
    )
    backend.connect_tcp("two.example", 80, timeout=10)
    assert recorder.asked == [("8.8.8.8", 5.0), ("8.8.4.4", 10.0)]


def test_nothing_starts_after_the_deadline() -> None:
    recorder = Recorder()
    backend = PinnedBackend(allow_private=False, lookup=lambda _h, _p: ["8.8.8.8"], inner=recorder)
    with deadline(0), pytest.raises(httpcore.ConnectTimeout):
        backend.connect_tcp("late.example", 80)
    assert recorder.asked == []


def test_a_real_connection_reaches_the_pinned_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend = PinnedBackend(allow_private=True, lookup=lambda _h, _p: ["127.0.0.1"])
        stream = backend.connect_tcp("nowhere.invalid", listener.getsockname()[1])
        assert stream.get_extra_info("server_addr") == listener.getsockname()
        stream.close()
