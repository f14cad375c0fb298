"""What Kubernetes is told of the pods, on a real HTTPS server."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.keeper.api_server import ApiServer
from tests.ledger import given
from worker.jobs.states import State
from worker.keeper import cluster as cluster_module
from worker.keeper.cluster import Cluster
from worker.keeper.duties import all_duties
from worker.keeper.keeper import Keeper, Post
from worker.keeper.pricer import Pricer, cost_of
from worker.settings import Settings, api_server


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """An API server that runs."""
    made = ApiServer(tmp_path)
    with made.running():
        yield made


@pytest.fixture
def pricer(api: ApiServer) -> Pricer:
    return Pricer(cluster_of(api))


def cluster_of(api: ApiServer) -> Cluster:
    return Cluster("127.0.0.1", api.port, api.account)


def test_a_pod_costs_what_runs_there(post: Post, api: ApiServer, pricer: Pricer) -> None:
    # Given an idle worker, a busy one, one with an isolated process, and pods of others
    api.costs = dict.fromkeys(["idle", "busy", "both", "flower"])
    given.lease(post.ledger, name="celery@idle")
    given.claimed(post.ledger, "a", "b", "c", lease_id=given.lease(post.ledger, name="w@busy"))
    given.running(post.ledger, lease_id=given.lease(post.ledger, name="celery@both"))
    isolated = given.lease(post.ledger, name="isolated-7.celery@both", isolated=True)
    given.running(post.ledger, lease_id=isolated)
    given.running(post.ledger, lease_id=given.lease(post.ledger, name="celery@../secrets/x"))

    # When the keeper looks
    assert pricer.run(post) is False

    # Then the busy ones cost the more, and no other is touched
    assert api.costs == {"idle": None, "busy": "2", "both": "2", "flower": None}
    assert sorted(api.patched) == ["both", "busy"]


def test_only_what_has_changed_is_told(post: Post, api: ApiServer, pricer: Pricer) -> None:
    api.costs = {"one": "0", "two": "1"}
    one, two = (given.lease(post.ledger, name=f"celery@{name}") for name in ("one", "two"))
    given.running(post.ledger, "a", lease_id=one)
    given.running(post.ledger, "b", lease_id=two)
    pricer.run(post)
    pricer.run(post)
    assert api.patched == ["one"]

    # Even by another keeper, and back to nothing
    given.expire(post.ledger, one)
    post.ledger.execute("UPDATE ledger.jobs SET state = 'queued', lease = NULL WHERE id = 'b'")
    Pricer(cluster_of(api)).run(post)
    assert (api.costs, api.patched) == ({"one": "1", "two": "0"}, ["one", "two"])


def test_every_page_of_pods_is_read_over_one_connection(
    post: Post, api: ApiServer, pricer: Pricer
) -> None:
    api.page = 2
    api.costs = dict.fromkeys(f"pod-{number}" for number in range(7))
    for name in api.costs:
        given.running(post.ledger, lease_id=given.lease(post.ledger, name=f"celery@{name}"))
    pricer.run(post)
    assert set(api.costs.values()) == {"1"}
    assert api.connections == 1


def test_a_pod_that_ends_is_left_alone(post: Post, api: ApiServer, pricer: Pricer) -> None:
    api.costs, api.ending = {"ending": None}, {"ending"}
    given.running(post.ledger, lease_id=given.lease(post.ledger, name="celery@ending"))
    pricer.run(post)
    assert api.patched == []


def test_a_pod_that_is_gone_is_no_fault(api: ApiServer) -> None:
    with cluster_of(api).session() as session:
        session.set_cost("gone", "1")
    assert api.connections == 1 and api.patched == []


def test_a_pod_that_may_not_be_changed_keeps_no_other_from_its_cost(
    post: Post, api: ApiServer, pricer: Pricer, caplog: pytest.LogCaptureFixture
) -> None:
    api.costs, api.refused = dict.fromkeys("abc"), {"a", "b"}
    for name in api.costs:
        given.running(post.ledger, lease_id=given.lease(post.ledger, name=f"celery@{name}"))
    pricer.run(post)
    assert api.costs == {"a": None, "b": None, "c": "1"}
    (told,) = caplog.messages
    assert told.endswith("the API server answers 409 to PATCH of pods")


def test_without_workers_nobody_is_asked(post: Post, api: ApiServer, pricer: Pricer) -> None:
    pricer.run(post)
    assert api.connections == 0


def test_a_token_that_was_changed_is_read_anew(post: Post, api: ApiServer, pricer: Pricer) -> None:
    api.costs = {"busy": None}
    given.running(post.ledger, lease_id=given.lease(post.ledger, name="celery@busy"))
    api.token = "second"
    pricer.run(post)
    assert api.patched == []
    api.give_token()
    pricer.run(post)
    assert api.patched == ["busy"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("forbidden", "the API server answers 403 to GET of pods"),
        ("away", "the API server is not available: [Errno 111] Connection refused"),
        ("silent", "the API server is not available: "),
        ("stranger", "certificate verify failed"),
        ("no token", "No such file or directory"),
        ("malformed token", "the API server's answer or the token is malformed"),
    ],
)
def test_a_fault_is_told_once_until_it_works_again(
    post: Post,
    api: ApiServer,
    fault: str,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "worker.keeper.pricer")
    monkeypatch.setattr(cluster_module, "STEP_SECONDS", 0.2)
    api.costs = {"busy": None}
    given.running(post.ledger, lease_id=given.lease(post.ledger, name="celery@busy"))
    right = cluster_of(api)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = int(listener.getsockname()[1])
        (tmp_path / "other").mkdir()
        stranger = ApiServer(tmp_path / "other").account
        wrong = {
            "forbidden": right,
            "away": replace(right, port=1),
            "silent": replace(right, port=silent),
            "stranger": replace(right, account=stranger),
            "no token": replace(right, account=tmp_path),
            "malformed token": replace(right, account=tmp_path),
        }[fault]
        (tmp_path / "ca.crt").write_bytes((api.account / "ca.crt").read_bytes())
        (tmp_path / "namespace").write_text("jobs")
        if fault == "malformed token":
            (tmp_path / "token").write_text(f"{api.token}\nsecond line")
        api.refuses = 403 if fault == "forbidden" else 0
        pricer = Pricer(wrong)
        assert [pricer.run(post) for _ in range(3)] == [False] * 3
        (told,) = caplog.messages
        assert told.startswith("Kubernetes is not told which pods are idle: ") and said in told
        assert api.token not in told

    api.refuses, pricer._cluster = 0, right
    pricer.run(post)
    assert caplog.messages[1:] == ["Kubernetes is told again which pods are idle."]
    assert api.patched == ["busy"]


def test_an_answer_without_an_end_is_given_up(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "ANSWER_BYTES", 10)
    api.costs = dict.fromkeys("abc")
    with (
        pytest.raises(cluster_module.ClusterUnavailable, match="too long, or too slow"),
        cluster_of(api).session() as session,
    ):
        session.costs()


def test_a_kubernetes_that_is_away_disturbs_nobody(
    settings: Settings, post: Post, api: ApiServer
) -> None:
    # Given an API server that takes connections and says nothing
    given.running(post.ledger, lease_id=given.lease(post.ledger, name="celery@busy"))
    given.enqueued(post.ledger, "due", delay=0.1)
    post.leadership.resign(post.ledger)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cluster = replace(cluster_of(api), port=int(silent.getsockname()[1]))
        keeper = Keeper(settings, all_duties(cluster))
        thread = threading.Thread(target=keeper.run)
        thread.start()
        # Then the keeper keeps, and is ready
        given.until(lambda: given.state_of(post.ledger, "due") is State.QUEUED)
        assert keeper.health.ready() == ()
        began = time.monotonic()
        keeper.stop()
        given.join([thread])
        assert time.monotonic() - began < 15


def test_a_cost_is_a_power_of_two() -> None:
    assert [cost_of(jobs) for jobs in range(9)] == ["0", "1", "2", "2", "4", "4", "4", "4", "8"]


def test_a_cluster_is_found_by_its_token(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "ACCOUNT", api.account)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert Cluster.found() is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT_HTTPS", "6443")
    assert api_server() == ("fd00::1", 6443)
    found = Cluster.found()
    assert found is not None and (found.host, found.port) == ("fd00::1", 6443)
    (api.account / "token").unlink()
    assert Cluster.found() is None
