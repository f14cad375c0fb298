"""Enqueue through the door: one round trip to each store, for one job or for those that meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.ledger import given
from tests.proxy import proxied
from worker.broker.doorbells import Doorbells, ring_of
from worker.client import Client
from worker.errors import (
    ArgumentsMismatch,
    Conflict,
    InvalidRequest,
    Unavailable,
    UnknownQueue,
    UnknownTask,
)
from worker.flows import enqueue as flow
from worker.flows import ring as ring_module
from worker.jobs.job import Enqueued, NewJob, Ring
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.ledger import enqueue as ledger_enqueue
from worker.ledger import silence
from worker.ledger.catalogue import publish
from worker.ledger.faults import Refused
from worker.ledger.insert import arrays_of
from worker.settings import Settings

_ECHO = {"echo": [["value", "POSITIONAL_OR_KEYWORD", False]]}


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as opened:
        yield opened


@pytest.fixture
def served(client: Client) -> None:
    """Some worker has published a task and a queue."""
    publish(client.ledger, _ECHO, ["celery"])


@contextmanager
def statements() -> Iterator[list[str]]:
    """What this process says to Postgres in the block."""
    said: list[str] = []
    real = silence._Cursor.execute

    def execute(self: silence._Cursor, sql: str, *arguments: object) -> None:
        said.append(" ".join(sql.split()))
        real(self, sql, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(silence._Cursor, "execute", execute)
        yield said


def scripts_run(client: Client) -> int:
    """How many scripts Redis has run for anybody."""
    stats = client.doorbells._redis.info("commandstats")
    assert isinstance(stats, dict)
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


@pytest.mark.usefixtures("served")
def test_a_job_like_one_before_takes_one_statement_and_one_push(client: Client) -> None:
    client.enqueue("echo", [1])
    pushed = scripts_run(client)

    with statements() as said:
        assert client.enqueue("echo", [2]).ring is not None

    assert len(said) == 1
    assert "EXECUTE ledger_enqueue_" in said[0]
    assert scripts_run(client) == pushed + 1


@pytest.mark.usefixtures("served")
def test_what_no_worker_knew_is_accepted_as_soon_as_one_does(client: Client) -> None:
    # Given a client that knows what workers had published
    client.enqueue("echo", [1])
    with pytest.raises(UnknownTask):
        client.enqueue("new", [1])
    with pytest.raises(UnknownQueue):
        client.enqueue("echo", [1], queue="new")
    with pytest.raises(ArgumentsMismatch):
        client.enqueue("echo", [1, 2])

    # When a worker publishes more
    kind = "POSITIONAL_OR_KEYWORD"
    publish(
        client.ledger,
        {"new": None, "echo": [["value", kind, False], ["again", kind, False]]},
        ["new"],
    )

    # Then the client knows it at once
    client.enqueue("new", [1])
    client.enqueue("echo", [1], queue="new")
    client.enqueue("echo", [1, 2])


@pytest.mark.usefixtures("served")
def test_what_workers_had_published_is_read_again_after_a_while(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.enqueue("echo", [1])
    publish(client.ledger, {"echo": []}, ["celery"])
    assert client.enqueue("echo", [1]).created

    monkeypatch.setattr(flow, "CATALOGUE_SECONDS", 0.0)

    with pytest.raises(ArgumentsMismatch):
        client.enqueue("echo", [1])


def test_the_first_worker_ends_that_everything_is_accepted(client: Client) -> None:
    client.enqueue("anything")

    publish(client.ledger, _ECHO, ["celery"])

    with pytest.raises(UnknownTask):
        client.enqueue("anything")


@pytest.mark.usefixtures("served")
def test_fifty_threads_with_one_key_make_one_job(client: Client) -> None:
    found = given.all_at_once([lambda: client.enqueue("echo", [1], key="k")] * 50)

    assert len({answer.id for answer in found}) == 1
    assert sum(answer.created for answer in found) == 1
    assert client.counts() == {State.QUEUED: 1}


@pytest.mark.usefixtures("served")
def test_a_thread_with_another_payload_is_told_of_the_conflict_and_no_other(
    client: Client,
) -> None:
    def produce(number: int) -> str:
        try:
            return client.enqueue("echo", [number == 7], key="k" if number < 8 else None).id
        except Conflict:
            return "conflict"

    client.enqueue("echo", [False], key="k")
    found = given.all_at_once([lambda n=number: produce(n) for number in range(20)])  # type: ignore[misc] # a lambda's default

    assert found[7] == "conflict" and found.count("conflict") == 1
    assert len(set(found[:7])) == 1 and len(set(found[8:])) == 12


@pytest.mark.usefixtures("served")
def test_threads_are_answered_while_redis_is_away(settings: Settings) -> None:
    with proxied(settings.redis_url.get_secret_value()) as line:
        line.refuse()
        own = settings.model_copy(update={"redis_url": type(settings.redis_url)(line.url)})
        with Client(own) as client:
            found = given.all_at_once([lambda: client.enqueue("echo", [1])] * 20)
            assert all(answer.created for answer in found)
            assert client.counts() == {State.QUEUED: 20}


@pytest.mark.usefixtures("served")
def test_many_are_answered_while_redis_is_away_after_one_look_for_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    with proxied(settings.redis_url.get_secret_value()) as line:
        line.refuse()
        own = settings.model_copy(update={"redis_url": type(settings.redis_url)(line.url)})
        with Client(own) as client:
            found = client.enqueue_many([new_job("echo", [n]) for n in range(45)])
            assert len({answer.id for answer in found if isinstance(answer, Enqueued)}) == 45
            assert client.counts() == {State.QUEUED: 45}
    told = [message for message in caplog.messages if "doorbells are late" in message]
    assert told[0].startswith("10 jobs") and told[-1].startswith("45 jobs") and len(told) == 2


@pytest.mark.usefixtures("served")
def test_a_list_that_redis_refuses_keeps_no_other_from_its_doorbells(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    publish(client.ledger, _ECHO, ["broken"])
    client.doorbells._redis.set("broken", "no list")

    client.enqueue_many([new_job("echo", queue="broken"), *(new_job("echo") for _ in range(44))])

    assert client.doorbells._redis.llen("celery") == 44


@pytest.mark.usefixtures("served")
def test_what_redis_missed_is_rung_for_with_a_later_part(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "AWAY_PAUSE", 0.0)
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    with proxied(settings.redis_url.get_secret_value()) as line:
        own = settings.model_copy(update={"redis_url": type(settings.redis_url)(line.url)})
        with Client(own) as client:
            client.doorbells.ping()
            parts: list[int] = []
            real = ring_module.ring

            def ring(doorbells: Doorbells, rings: Sequence[Ring]) -> bool:
                parts.append(len(rings))
                line.refuse() if len(parts) == 2 else line.heal()
                return real(doorbells, rings)

            monkeypatch.setattr(ring_module, "ring", ring)
            client.enqueue_many([new_job("echo") for _ in range(40)])
            assert parts == [10, 10, 20, 10]
            assert client.doorbells._redis.llen("celery") == 40


def a_stream(count: int, at: int, what: NewJob | Exception) -> Iterator[NewJob]:
    """So many good jobs, with something else before number `at`."""
    for number in range(count):
        if number == at:
            if isinstance(what, Exception):
                raise what
            yield what
        yield new_job("echo", [number], job_id=f"j{number:02}")


@pytest.mark.usefixtures("served")
def test_a_stream_is_answered_in_its_order_each_job_durable_and_rung_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    jobs = [new_job("echo", [number]) for number in range(75)]
    told = []
    for answer in client.enqueue_stream(iter(jobs)):
        assert isinstance(answer, Enqueued)
        told.append(answer.id)
        assert client.job(answer.id).state is State.QUEUED
        assert client.doorbells._redis.llen("celery") >= len(told)
    assert told == [job.id for job in jobs]
    assert client.counts() == {State.QUEUED: 75}
    assert rung(client) == told, "they run in their order"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "bad",
    [
        new_job("echo", [1, 2]),
        new_job("unknown"),
        replace(new_job("echo"), id="a NUL: \0"),
        OSError("the file ends here"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 10, 34])
def test_a_stream_ends_with_its_first_bad_job_and_all_before_it_are_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch, bad: NewJob | Exception, at: int
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    told = []
    with pytest.raises((InvalidRequest, OSError)):
        for answer in client.enqueue_stream(a_stream(40, at, bad)):
            assert isinstance(answer, Enqueued)
            told.append(answer.id)
    assert told == [f"j{number:02}" for number in range(at)]
    assert client.counts() == ({State.QUEUED: at} if at else {})


@pytest.mark.usefixtures("served")
def test_a_stream_takes_little_more_than_was_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    taken: list[str] = []

    def endless() -> Iterator[NewJob]:
        while True:
            job = new_job("echo")
            taken.append(job.id)
            yield job

    answers = client.enqueue_stream(endless())
    assert [next(answers).id for _ in range(30)] == taken[:30]  # type: ignore[union-attr] # new ids
    assert len(taken) <= 30 + 10 * (ledger_enqueue.AHEAD + 2)
    answers.close()
    left = client.counts()[State.QUEUED]
    assert 30 <= left <= 30 + 10 * ledger_enqueue.AHEAD


@pytest.mark.usefixtures("served")
def test_a_stream_may_be_sent_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    jobs = [new_job("echo", [n], key=f"k{n}") for n in range(45)]
    first = list(client.enqueue_stream(iter(jobs[:25])))
    again = list(client.enqueue_stream(new_job("echo", [n], key=f"k{n}") for n in range(45)))

    assert [answer.id for answer in again[:25]] == [answer.id for answer in first]  # type: ignore[union-attr] # no conflict
    assert [answer.created for answer in again] == [False] * 25 + [True] * 20  # type: ignore[union-attr]
    assert client.counts() == {State.QUEUED: 45}


def test_before_the_first_worker_a_stream_asks_for_the_catalogue_once(client: Client) -> None:
    with statements() as said:
        told = list(client.enqueue_stream(new_job("anything") for _ in range(200)))
    assert len(told) == 200
    assert len([words for words in said if "catalogue" in words]) == 1


@pytest.mark.usefixtures("served")
def test_what_a_worker_has_published_meanwhile_is_taken(client: Client) -> None:
    def jobs() -> Iterator[NewJob]:
        yield new_job("echo")
        publish(client.ledger, {"new": []}, ["celery"])
        yield new_job("new")

    assert len(list(client.enqueue_stream(jobs()))) == 2


@pytest.mark.usefixtures("served")
def test_a_slow_source_keeps_no_job_waiting_for_the_thousandth(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a source so slow that each job finds the batch before it old
    monkeypatch.setattr(ledger_enqueue, "OPEN", -1.0)
    came = []

    def slow() -> Iterator[NewJob]:
        for number in range(6):
            yield new_job("echo")
            came.append(until_rung(client, number))

    assert len(list(client.enqueue_stream(slow()))) == 6
    # Then, when it is asked for the next one, all but the last have doorbells, or get them soon
    assert came == [True] * 6


def rung(client: Client) -> list[str]:
    """The ids of the jobs with doorbells, first to be popped first."""
    entries: Any = client.doorbells._redis.lrange("celery", 0, -1)
    rings = [ring_of("celery", entry) for entry in reversed(entries)]
    return [ring.id for ring in rings if ring]


def until_rung(client: Client, count: int) -> bool:
    """Whether so many jobs have doorbells within ten seconds."""
    deadline = time.monotonic() + 10
    while client.doorbells._redis.llen("celery") < count:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # a list has no event to wait on
    return True


@pytest.mark.usefixtures("served")
def test_a_slow_taker_of_answers_keeps_no_doorbell_waiting(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given three batches under way when the first answer is there
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    third, made = threading.Event(), []
    ring = ring_module.ring

    def counted(jobs: Sequence[NewJob]) -> dict[str, str]:
        made.append(jobs)
        if len(made) == 3:
            third.set()
        return arrays_of(jobs)

    def held(doorbells: Doorbells, rings: Sequence[Ring]) -> bool:
        assert third.wait(10)
        return ring(doorbells, rings)

    monkeypatch.setattr(ledger_enqueue, "arrays_of", counted)
    monkeypatch.setattr(ring_module, "ring", held)
    answers = client.enqueue_stream(new_job("echo") for _ in range(100))
    next(answers)
    # Then, while nobody takes another one, all are committed and rung for
    assert until_rung(client, 30)
    assert client.counts() == {State.QUEUED: 30}
    answers.close()


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("of", [1, 2, 3, 4])
def test_a_stream_goes_on_when_no_thread_can_start_any_more(
    client: Client, monkeypatch: pytest.MonkeyPatch, of: int
) -> None:
    # Given a process that is at its end when a stream hands over something for the `of`th time
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    submit, calls = ThreadPoolExecutor.submit, []

    def refused(self: ThreadPoolExecutor, *args: Any, **kwargs: Any) -> Future[Any]:
        calls.append(args)
        if len(calls) >= of:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        return submit(self, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refused)
    jobs = [new_job("echo", [number]) for number in range(57)]
    told = [answer.id for answer in client.enqueue_stream(iter(jobs))]  # type: ignore[union-attr] # new ids

    assert told == [job.id for job in jobs]
    assert len(calls) == of, "it stays with what it has found"
    assert rung(client) == told


@pytest.mark.usefixtures("served")
def test_a_batch_that_cannot_be_written_comes_after_the_answers_before_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    good = [new_job("echo") for _ in range(25)]
    bad = replace(new_job("echo"), group_id="a lone surrogate: \ud800")
    told = []
    with pytest.raises(Refused):
        for answer in client.enqueue_stream(iter([*good, bad, *good[:1]])):
            assert isinstance(answer, Enqueued)
            told.append(answer.id)
    assert told == [job.id for job in good[:20]]
    assert client.counts() == {State.QUEUED: 20}


@pytest.mark.usefixtures("served")
def test_a_stream_that_is_interrupted_rings_for_what_is_committed_and_leaves_no_thread(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)

    def interrupted() -> Iterator[NewJob]:
        yield from (new_job("echo") for _ in range(57))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for _ in client.enqueue_stream(interrupted()):
            pass
    assert client.doorbells._redis.llen("celery") == client.counts()[State.QUEUED]
    assert not [one for one in threading.enumerate() if one.name.startswith("enqueue")]


@pytest.mark.usefixtures("served")
def test_a_stream_while_redis_is_away_keeps_few_doorbells(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    monkeypatch.setattr(ring_module, "LATE_MOST", 25)
    monkeypatch.setattr(ring_module, "AWAY_PAUSE", 0.0)
    most = []
    real = ring_module.ring

    def ring(doorbells: Doorbells, rings: Sequence[Ring]) -> bool:
        most.append(len(rings))
        return real(doorbells, rings)

    monkeypatch.setattr(ring_module, "ring", ring)
    with proxied(settings.redis_url.get_secret_value()) as line:
        line.refuse()
        own = settings.model_copy(update={"redis_url": type(settings.redis_url)(line.url)})
        with Client(own) as client:
            assert len(list(client.enqueue_stream(new_job("echo") for _ in range(60)))) == 60
    assert most == [10, 20, 30, 35, 35, 35], "those that are kept, and a part"


@pytest.mark.usefixtures("served")
def test_a_stream_that_loses_postgres_has_told_what_is_committed_and_may_be_sent_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    with proxied(settings.database_url.get_secret_value()) as line:
        own = settings.model_copy(update={"database_url": type(settings.database_url)(line.url)})
        with Client(own) as client:

            def jobs(*, breaks: bool) -> Iterator[NewJob]:
                for number in range(100):
                    if breaks and number == 65:
                        line.refuse()
                    yield new_job("echo", [number], key=f"k{number}")

            told = []
            with pytest.raises(Unavailable):
                for answer in client.enqueue_stream(jobs(breaks=True)):
                    assert isinstance(answer, Enqueued)
                    told.append(answer.id)
            line.heal()
            again = list(client.enqueue_stream(jobs(breaks=False)))
            assert told == [answer.id for answer in again[: len(told)]]  # type: ignore[union-attr] # no conflict
            untold = sum(not answer.created for answer in again) - len(told)  # type: ignore[union-attr] # ditto
            assert len(told) >= 30 and 0 <= untold <= 10, "only of one batch it is unknown"
            assert client.counts() == {State.QUEUED: 100}


@pytest.mark.usefixtures("served")
def test_doubles_in_a_later_part_of_a_stream_are_answered_with_the_first(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_enqueue, "BATCH", 10)
    jobs = [new_job("echo", [number], key=f"k{number % 15}") for number in range(45)]
    same = [new_job("echo", [number % 15], key=f"k{number % 15}") for number in range(45)]

    told = list(client.enqueue_stream(iter(jobs)))

    again = list(client.enqueue_stream(iter(same)))

    assert [type(answer) for answer in told] == [Enqueued] * 15 + [Conflict] * 30
    firsts = [answer.id for answer in told[:15]]  # type: ignore[union-attr] # no conflict
    assert [answer.id for answer in again] == firsts * 3  # type: ignore[union-attr] # no conflict
    assert client.doorbells._redis.llen("celery") == 15
