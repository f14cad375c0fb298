"""Where `http.request` may connect: host names resolved here, and every address judged.

Whoever may enqueue a job chooses its URL. Without this check that would be a way into every
network the worker can reach: cloud metadata, the cluster's own services, the ledger itself.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from queue import Empty, SimpleQueue

#: A name and a port to IP addresses; raises OSError.
Lookup = Callable[[str, int], list[str]]

#: What is not the public Internet. Source: IANA's special-purpose address registries for IPv4
#: and IPv6 (RFC 6890 and later). Written out, because Python's `is_global` differs between
#: patch releases and takes multicast for public.
_REFUSED: tuple[tuple[str, IPv4Network | IPv6Network], ...] = tuple(
    (kind, ip_network(network))
    for kind, networks in {
        "an unspecified": "0.0.0.0/8 ::/128",
        "a loopback": "127.0.0.0/8 ::1/128",
        "a private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10",
        "a link-local": "169.254.0.0/16 fe80::/10",
        "a carrier's shared": "100.64.0.0/10",
        "a multicast": "224.0.0.0/4 ff00::/8",
        # A form that hides an IPv4 address; nothing public needs one.
        "an IPv4-mapped": "::ffff:0:0/96 ::ffff:0:0:0/96 ::/96",
        "a tunnel's": "2002::/16 2001::/32 192.88.99.0/24 64:ff9b:1::/48",
        "a documentation": "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20",
        # 168.63.129.16 looks public, and is what Azure's platform is to its machines.
        "a reserved": "192.0.0.0/24 198.18.0.0/15 240.0.0.0/4 2001::/23 168.63.129.16/32",
    }.items()
    for network in networks.split()
)
#: The only part of IPv6 that is handed out as public.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
#: How a network with IPv6 only reaches IPv4 (RFC 6052): judged by the IPv4 address inside.
_NAT64 = IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """A host has an address that `http.request` may not reach."""


def refused_kind(text: str) -> str | None:
    """What an IP address is, with its article ("a loopback"), or `None` when it is public."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "a link-local"
        if address in _NAT64:
            return refused_kind(str(IPv4Address(int(address) & 0xFFFFFFFF)))
    for kind, network in _REFUSED:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "a reserved"
    return None


def addresses_of(
    host: str, port: int, *, allow_private: bool, timeout: float, lookup: Lookup | None = None
) -> list[str]:
    """The IP addresses of `host`, in the order to try them, each one judged.

    Connect to these, never to the name again: a second lookup may answer otherwise (DNS
    rebinding). One refused address refuses the host: an honest one does not mix them.

    Args:
        host: a name or a literal of any form; `2130706433` and `0x7f.1` are 127.0.0.1 too,
            and are judged by what the resolver makes of them.
        port: 0 to 65535.
        allow_private: judge nothing.
        timeout: seconds that the lookup may take.
        lookup: default this machine's resolver.

    Raises:
        AddressRefused: not `allow_private`, and an address is not public.
        OSError: the name cannot be resolved; `TimeoutError` when not in time.
    """
    found = _in_time(lookup or _resolve, host, port, timeout)
    if not found:
        raise OSError("the name has no address")
    for address in () if allow_private else found:
        if kind := refused_kind(address):
            raise AddressRefused(
                f"{host} has {kind} address; http.request reaches public ones only,"
                " unless WORKER_HTTP_ALLOW_PRIVATE is true."
            )
    return found


def _resolve(host: str, port: int) -> list[str]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("the name is no host name") from None
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answers))


def _in_time(lookup: Lookup, host: str, port: int, timeout: float) -> list[str]:
    # The C resolver knows no timeout of ours. A thread that waits for it in vain ends by the
    # resolver's own limits.
    answers: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(lookup(host, port))
        except OSError as exc:
            answers.put(exc)

    threading.Thread(target=ask, name=f"resolve-{host[:60]}", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except Empty:
        raise TimeoutError("the name was not resolved in time") from None
    if isinstance(answer, OSError):
        raise answer
    return answer
