"""The effective configuration, as it may be shown to anybody."""

from __future__ import annotations

import re
from itertools import zip_longest
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from worker.settings import Settings, variable_of


def effective(settings: Settings) -> dict[str, str]:
    """Every setting's variable and value; of an address what finds it, of a secret nothing."""
    return {
        variable_of(field): _shown(field, getattr(settings, field))
        for field in Settings.model_fields
    }


def without_secrets(url: str) -> str:
    """An address as scheme://host:port/name: no user, no password, no options."""
    first, *others = re.split(r";(?=sentinel://)", url)
    if others:
        return ";".join(without_secrets(part) for part in (first, *others))
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    # A password with a bare "/", "?" or "#" in it spills over into what follows the host.
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return f"{scheme}://***"
    host = parts.netloc.rpartition("@")[2] or _hosts(parts.query)
    return f"{scheme}://{host}{parts.path}"


def _hosts(query: str) -> str:
    """The hosts of an address that has them in its query: several, or a folder of sockets."""
    asked = dict(parse_qsl(query))
    hosts, ports = asked.get("host", ""), asked.get("port", "")
    pairs = zip_longest(hosts.split(","), ports.split(","), fillvalue="")
    return ",".join(f"{host}:{port}" if port else host for host, port in pairs)


def _shown(field: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return without_secrets(value.get_secret_value()) if field.endswith("_url") else "***"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
