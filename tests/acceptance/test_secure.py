"""A real service whose Redis speaks TLS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from tests.acceptance.conftest import Service
from tests.processes import Processes
from tests.tls import Terminator, make_certificate, terminated
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1's own, with its key."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "redis.pem", "IP:127.0.0.1")


@pytest.fixture
def tls(redis_url: str, certificate: Path) -> Iterator[Terminator]:
    """TLS before the test's Redis."""
    with terminated(redis_url, certificate) as made:
        yield made


@pytest.fixture
def secure(
    tls: Terminator, certificate: Path, database_url: str, processes: Processes, tmp_path: Path
) -> Iterator[Service]:
    """A service that knows Redis by its TLS address alone."""
    url = f"{tls.url}?ssl_ca_certs={certificate}&ssl_cert_reqs=required"
    settings = Settings.load(database_url=database_url, redis_url=url)
    processes._environment = {**processes._environment, "REDIS_URL": url}
    made = Service(processes, settings, tmp_path)
    yield made
    made.client.close()


def test_a_service_runs_jobs_over_tls(secure: Service, tls: Terminator) -> None:
    # Given a worker and a keeper
    secure.keeper()
    worker = secure.worker("prefork", 2)

    # When jobs come from the client, and from a Celery producer
    ids = [secure.enqueue("test.note", secure.log) for _ in range(5)]
    ids.append(secure.enqueue("test.note", secure.log, delay=0.2))
    app = durable(Celery("producer", set_as_current=False), secure.settings)
    ids.append(app.send_task("test.note", [secure.log]).id)

    # Then they run, and the worker hears what it is told
    assert secure.all_ended(ids) == {State.SUCCEEDED: 7}
    assert len(app.control.ping(timeout=10, limit=1)) == 1
    assert "Redis is away" not in worker.output
    app.close()


def test_check_proves_the_way_to_redis(secure: Service) -> None:
    check = secure.processes([sys.executable, "-m", "worker", "check"])

    assert check.wait() == 0, check.output
    assert "ssl_ca_certs" not in check.output


def test_an_app_keeps_its_own_broker_url_and_what_it_says_of_tls(
    secure: Service, tls: Terminator, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL", secure.settings.database_url.get_secret_value())
    app = Celery("own", broker=tls.url, set_as_current=False)
    app.conf.broker_use_ssl = {"ssl_ca_certs": str(certificate)}
    durable(app)

    job_id = app.send_task("test.note", [secure.log]).id
    secure.worker()

    assert secure.ended(job_id).state is State.SUCCEEDED
    app.close()


def test_a_wrong_certificate_is_told_in_a_sentence(
    tls: Terminator, tmp_path: Path, processes: Processes
) -> None:
    # Given another authority than the one that has signed
    wrong = make_certificate(tmp_path / "wrong.pem", "IP:127.0.0.1")
    variables = {"REDIS_URL": f"{tls.url}?ssl_ca_certs={wrong}"}

    # When it is checked, and a worker starts
    check = processes([sys.executable, "-m", "worker", "check"], variables)
    worker = processes([sys.executable, "-m", "worker", "run"], variables)

    # Then both say why, and neither shows a traceback
    assert check.wait() == 3
    assert "✗ Redis is not available: its certificate is refused (self-signed" in check.output
    line = worker.wait_for_line("certificate verify failed", 60)
    assert "Cannot connect" in line
    assert "Traceback" not in worker.output + check.output
