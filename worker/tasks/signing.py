"""Signatures of webhook bodies: made by `http.request`, checked by receivers. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re

#: The header that carries the signature.
HEADER = "X-Ledger-Signature"
#: Seconds that a signature stays good: long enough for slow clocks, too short to replay later.
TOLERANCE = 300.0

_FORM = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")


def sign(secret: str, body: bytes, timestamp: int) -> str:
    """The value of `HEADER`: `t=<timestamp>,v1=<hex>`.

    The hex is HMAC-SHA256, keyed with `secret`, over `<timestamp>.<body>`: the time is signed
    too, so that nobody can pass an old delivery off as a new one.

    Args:
        secret: shared with the receiver.
        body: exactly the bytes that are sent.
        timestamp: Unix time, in seconds.
    """
    return f"t={timestamp},v1={_digest(secret, body, str(timestamp))}"


def verify(
    secret: str, header: str | None, body: bytes, *, now: float, tolerance: float = TOLERANCE
) -> bool:
    """Whether `header` is a signature of `body` made with `secret` close to `now`.

    Args:
        secret: shared with the sender.
        header: what came in `HEADER`; anything at all, or `None` when it was missing.
        body: exactly the bytes that came.
        now: Unix time, in seconds.
        tolerance: seconds that the signature may be away from `now`, either way.
    """
    match = _FORM.fullmatch(header or "")
    if match is None:
        return False
    timestamp, given = match.groups()
    # In constant time: how long a comparison takes must not tell how much of it was right.
    genuine = hmac.compare_digest(_digest(secret, body, timestamp), given)
    return genuine and abs(now - int(timestamp)) <= tolerance


def _digest(secret: str, body: bytes, timestamp: str) -> str:
    signed = timestamp.encode() + b"." + body
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
