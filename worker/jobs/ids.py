"""Job ids: made here as UUIDv7, accepted from producers within bounds."""

from __future__ import annotations

import os
import time

from worker.errors import MalformedId

#: A btree index entry of Postgres holds about 2,700 bytes; 255 is what Celery's own backends allow.
MAX_ID_BYTES = 255
#: Ids for which random digits are fetched together.
RANDOM_IDS = 64

#: Whose digits, and which are left.
_kept: tuple[int, list[str]] = (0, [])


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): ordered by time, so that time order is index order."""
    time_part = (time.time_ns() // 1_000_000).to_bytes(6, "big").hex()
    random = _random_digits()
    variant = "89ab"[int(random[3], 16) & 0b11]
    return f"{time_part[:8]}-{time_part[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"


def _random_digits() -> str:
    """Twenty hexadecimal digits that no other id has, of this process or a fork of it.

    Asked for many at a time: each time the system is asked, a busy process may lose its turn.
    """
    global _kept
    pid, digits = _kept
    if not digits or pid != os.getpid():
        block = os.urandom(10 * RANDOM_IDS).hex()
        digits = [block[start : start + 20] for start in range(0, len(block), 20)]
        _kept = os.getpid(), digits
    try:
        return digits.pop()
    except IndexError:  # other threads took them all
        return os.urandom(10).hex()


def shown(value: object, limit: int = 80) -> str:
    """`value` as an error message shows it: its repr, at most about `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def checked_id(job_id: object) -> str:
    """`job_id` itself, when the ledger can hold it.

    Raises:
        MalformedId: it is no text, empty, longer than 255 bytes, or has a NUL or a lone surrogate.
    """
    if not isinstance(job_id, str) or not job_id:
        raise MalformedId(f"A job id must be a non-empty text, not {shown(job_id)}.")
    try:
        size = len(job_id.encode())
    except UnicodeEncodeError:
        raise MalformedId(
            "A job id must be valid Unicode; this one has a lone surrogate."
        ) from None
    if size > MAX_ID_BYTES:
        raise MalformedId(f"A job id may have at most {MAX_ID_BYTES} bytes; this one has {size}.")
    if "\0" in job_id:
        raise MalformedId("A job id may not hold a NUL character.")
    return job_id
