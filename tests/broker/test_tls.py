"""Doorbells over TLS: a certificate is verified, and a fault of it is told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tls import Terminator, make_certificate, terminated
from worker.broker.doorbells import Doorbells
from worker.errors import BrokerUnavailable
from worker.jobs.job import Ring


@pytest.fixture
def tls(redis_url: str, certificate: Path) -> Iterator[Terminator]:
    """TLS before the test's Redis."""
    with terminated(redis_url, certificate) as made:
        yield made


@pytest.mark.parametrize("reqs", ["", "&ssl_cert_reqs=required", "&ssl_cert_reqs=CERT_REQUIRED"])
def test_doorbells_ring_over_tls(tls: Terminator, certificate: Path, reqs: str) -> None:
    bells = Doorbells(f"{tls.url}?ssl_ca_certs={certificate}{reqs}")

    bells.ring([Ring("a", "q", 1)])

    assert bells.wait(["q"], 5)
    assert len(bells.pop(["q"], 9)) == 1
    assert tls.connections > 0
    bells.close()


def test_a_certificate_is_not_verified_where_the_address_says_so(tls: Terminator) -> None:
    bells = Doorbells(f"{tls.url}?ssl_cert_reqs=none")
    bells.ping()
    bells.close()
    assert tls.connections > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", r"its certificate is refused \(self-signed certificate\); check ssl_ca_certs"),
        ("?ssl_ca_certs={wrong}", r"its certificate is refused \(self-signed certificate\)"),
        ("?ssl_ca_certs=/nowhere/ca.pem", "a file that REDIS_URL names for TLS cannot be read"),
    ],
)
def test_what_is_wrong_with_tls_is_told(
    tls: Terminator, tmp_path: Path, options: str, said: str
) -> None:
    wrong = make_certificate(tmp_path / "other.pem", "IP:127.0.0.1")
    bells = Doorbells(tls.url + options.format(wrong=wrong))

    with pytest.raises(BrokerUnavailable, match=f"Redis is not available: {said}"):
        bells.ping()

    bells.close()
