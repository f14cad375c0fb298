"""The signature of a webhook's body."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tasks.signing import TOLERANCE, sign, verify

NOW = 1_750_000_000


@given(secret=st.text(st.characters(exclude_categories=["Cs"])), body=st.binary())
def test_what_was_signed_verifies(secret: str, body: bytes) -> None:
    assert verify(secret, sign(secret, body, NOW), body, now=NOW)


@given(body=st.binary(), other=st.binary())
def test_another_body_does_not(body: bytes, other: bytes) -> None:
    assert verify("secret", sign("secret", body, NOW), other, now=NOW) == (body == other)


def test_the_form_is_what_receivers_in_any_language_compute() -> None:
    expected = hmac.new(b"secret", b'1750000000.{"a":1}', hashlib.sha256).hexdigest()
    assert sign("secret", b'{"a":1}', NOW) == f"t=1750000000,v1={expected}"


def test_another_secret_does_not_verify() -> None:
    assert not verify("other", sign("secret", b"body", NOW), b"body", now=NOW)


def test_the_time_is_signed_too() -> None:
    moved = sign("secret", b"body", NOW).replace(f"t={NOW}", f"t={NOW + 1}")
    assert not verify("secret", moved, b"body", now=NOW)


@pytest.mark.parametrize(("age", "good"), [(TOLERANCE, True), (TOLERANCE + 1, False)])
def test_a_signature_is_good_for_a_while_either_way(age: float, good: bool) -> None:
    header = sign("secret", b"body", NOW)
    assert verify("secret", header, b"body", now=NOW + age) is good
    assert verify("secret", header, b"body", now=NOW - age) is good


@pytest.mark.parametrize(
    "header", [None, "", "t=,v1=", "t=1", f"t={NOW},v1=zz", f"t=-1,v1={'0' * 64}", "ü=🙂"]
)
def test_what_is_no_signature_does_not_verify(header: str | None) -> None:
    assert not verify("secret", header, b"body", now=NOW)
