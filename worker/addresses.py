"""What the address of a store must look like, told without its password."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit


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
