"""The effective configuration, as it may be shown to anybody."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

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
    # A password with a bare "/", "?" or "#" in it spills over into what follows the host.
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return "***"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme.partition('+')[0]}://{host}{parts.path}"


def _shown(field: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return without_secrets(value.get_secret_value()) if field.endswith("_url") else "***"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
