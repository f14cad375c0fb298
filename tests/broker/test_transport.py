"""Every task message passes the transport, whoever sends it and however."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import redis
from celery import Celery, chain, chord, group, signature

from tests.ledger import given
from worker.broker.doorbells import Doorbells, ring_of
from worker.broker.transport import PATIENT, WRITER
from worker.errors import LedgerUnavailable
from worker.jobs.job import NewJob, Ring
from worker.stack.redis import RedisServer


class Rows:
    """A writer that keeps in memory what it was given."""

    def __init__(self) -> None:
        self.jobs: list[NewJob] = []
        self.then: Callable[[], None] = lambda: None

    def __call__(self, job: NewJob) -> Ring | None:
        self.jobs.append(job)
        self.then()
        return Ring(job.id, job.list, len(self.jobs)) if job.is_due else None

    @property
    def tasks(self) -> list[str]:
        return [job.task for job in self.jobs]


def make_app(url: str, writer: Rows) -> Celery:
    app = Celery("transport-test", broker=url, set_as_current=False, backend="cache+memory://")
    app.conf.update(
        broker_transport="worker.broker.transport:Transport",
        broker_transport_options={WRITER: writer},
    )

    @app.task(name="tests.add", shared=False)
    def add(x: int = 0, y: int = 0) -> int:
        return x + y

    return app


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def app(redis_url: str, rows: Rows) -> Iterator[Celery]:
    app = make_app(redis_url, rows)
    yield app
    app.close()


@pytest.fixture
def in_redis(redis_url: str) -> Iterator[Callable[[], list[str]]]:
    """The ids of the doorbells in the list `celery`, and the test that nothing else is there."""
    with redis.Redis.from_url(redis_url) as client:

        def look() -> list[str]:
            entries = cast(list[bytes], client.lrange("celery", 0, -1))
            rings = [ring_of("celery", entry) for entry in entries]
            assert all(rings), "a message of a task stands in Redis"
            return [ring.id for ring in rings if ring][::-1]

        yield look


PATHS: dict[str, Callable[[Celery], object]] = {
    "delay": lambda app: app.tasks["tests.add"].delay(1, 2),
    "apply_async": lambda app: app.tasks["tests.add"].apply_async((1,), {"y": 2}),
    "send_task": lambda app: app.send_task("tests.elsewhere", (1, 2)),
    "unregistered signature": lambda app: signature("tests.elsewhere", (1,), app=app).delay(),
    "beat": lambda app: app.send_task(
        "tests.elsewhere", producer=app.producer_pool.acquire(block=True), task_id="b"
    ),
    "chain": lambda app: chain(
        app.tasks["tests.add"].s(1), app.tasks["tests.add"].s(2), app=app
    ).apply_async(),
}


@pytest.mark.parametrize("path", list(PATHS))
def test_every_way_to_publish_passes_the_writer(
    app: Celery, rows: Rows, in_redis: Callable[[], list[str]], path: str
) -> None:
    PATHS[path](app)

    assert len(rows.jobs) == 1
    assert in_redis() == [rows.jobs[0].id]


def test_every_member_of_a_group_and_a_chords_header_pass_the_writer(
    app: Celery, rows: Rows, in_redis: Callable[[], list[str]]
) -> None:
    add = app.tasks["tests.add"]

    group([add.s(number) for number in range(3)], app=app).apply_async()
    assert len(rows.jobs) == 3
    assert len({job.group_id for job in rows.jobs}) == 1
    with suppress(NotImplementedError):  # no chords in this result backend; headers are published
        chord([add.s(1), add.s(2)], add.s(), app=app).apply_async()
    assert in_redis() == [job.id for job in rows.jobs]


def test_the_row_has_the_queue_the_priority_and_the_whole_message(
    app: Celery, rows: Rows, redis_url: str
) -> None:
    app.send_task(
        "tests.elsewhere",
        (1,),
        {"y": 1e22},
        queue="other",
        priority=4,
        task_id="a",
        headers={"h": 1},
    )

    (job,) = rows.jobs
    assert (job.id, job.queue, job.list, job.priority) == ("a", "other", "other\x06\x163", 4)
    assert json.loads(job.message.body)[:2] == [[1], {"y": 1e22}]
    assert json.loads(job.message.envelope)["headers"]["h"] == 1
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("other\x06\x163") == 1


@pytest.mark.parametrize(
    "when",
    [{"countdown": 60}, {"eta": datetime.now(UTC) + timedelta(hours=1)}],
    ids=["countdown", "eta"],
)
def test_a_message_with_a_future_time_never_reaches_redis(
    app: Celery, rows: Rows, redis_url: str, when: dict[str, Any]
) -> None:
    app.tasks["tests.add"].apply_async(**when)
    app.send_task("tests.elsewhere", queue="other", **when)

    assert [job.is_due for job in rows.jobs] == [False, False]
    with redis.Redis.from_url(redis_url) as client:
        kinds = {key: client.type(key) for key in cast(list[bytes], client.keys("*"))}
        assert b"list" not in kinds.values(), kinds


def test_expires_is_kept_in_the_row(app: Celery, rows: Rows) -> None:
    app.tasks["tests.add"].apply_async(expires=60)

    (job,) = rows.jobs
    assert job.expires is not None and 50 < job.expires <= 60


def test_a_writer_that_refuses_stops_the_publish(
    app: Celery, rows: Rows, in_redis: Callable[[], list[str]]
) -> None:
    def refuse() -> None:
        raise LedgerUnavailable("Postgres is not available.")

    rows.then = refuse

    with pytest.raises(LedgerUnavailable):
        app.tasks["tests.add"].apply_async(retry=False)

    assert in_redis() == []


def test_an_enqueue_succeeds_when_redis_dies_after_the_write(own_redis: RedisServer) -> None:
    # Given a producer whose Redis dies right after the row is written
    rows = Rows()
    app = make_app(own_redis.url, rows)
    app.tasks["tests.add"].delay(1)
    rows.then = own_redis.stop

    # When it enqueues
    result = app.tasks["tests.add"].delay(2)

    # Then it has succeeded, and there is one row of it
    assert [job.id for job in rows.jobs][1:] == [result.id]
    app.close()


@pytest.fixture
def unable(own_redis: RedisServer) -> redis.Redis:
    """A Redis that refuses all it is asked to write, and every ping: it cannot write its disk."""
    client = redis.Redis.from_url(own_redis.url)
    client.config_set("save", "3600 1")
    shutil.rmtree(own_redis.data / "store")
    with suppress(redis.exceptions.ResponseError):
        client.bgsave()
    given.until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    with pytest.raises(redis.exceptions.ResponseError, match="MISCONF"):
        client.ping()
    return client


def test_an_enqueue_succeeds_when_redis_cannot_write_its_disk(
    own_redis: RedisServer, unable: redis.Redis
) -> None:
    rows = Rows()
    app = make_app(own_redis.url, rows)
    app.conf.broker_transport_options |= {PATIENT: True}

    result = app.tasks["tests.add"].delay(1)

    assert [job.id for job in rows.jobs] == [result.id]
    app.close()


def test_a_redis_that_cannot_write_its_disk_is_away_to_a_worker(
    own_redis: RedisServer, unable: redis.Redis
) -> None:
    # Given a worker that connects, as it does for as long as Redis is away
    app, refused = make_app(own_redis.url, Rows()), []

    def mend(error: Exception, interval: float) -> None:
        refused.append(error)
        unable.config_set("save", "")

    # When Redis is unable, and then is not
    with app.connection_for_read() as connection:
        connection.ensure_connection(mend, max_retries=3, interval_start=0)

    # Then it has tried again
    assert "refuses a ping" in str(refused[0])
    app.close()


def test_a_subscription_bears_a_redis_that_cannot_write_its_disk(
    own_redis: RedisServer, request: pytest.FixtureRequest
) -> None:
    # Given a worker's channel that listens, and pings now and then
    app = make_app(own_redis.url, Rows())
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.subclient.subscribe("pidbox")
        channel.subclient.parse_response()
        # When Redis is unable
        request.getfixturevalue("unable")
        channel.subclient.ping()
        # Then the answer is no message, and the channel listens on
        assert not channel._receive_one(channel.subclient)
        redis.Redis.from_url(own_redis.url).config_set("save", "")
        channel.subclient.ping()
        assert channel.subclient.parse_response()
    app.close()


def test_a_doorbell_rings_the_bell_of_its_queue(app: Celery, redis_url: str) -> None:
    bells = Doorbells(redis_url)
    app.tasks["tests.add"].delay(1)

    assert bells.wait(["celery"], 5)
    bells.close()


def test_a_message_that_is_no_task_passes_as_kombu_has_it(
    app: Celery, rows: Rows, redis_url: str
) -> None:
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue("plain")
        queue.put({"hello": 1})
        queue.close()

    assert rows.jobs == []
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("plain") == 1


def test_without_a_writer_it_is_kombus_own_transport(redis_url: str) -> None:
    app = Celery("plain", broker=redis_url, set_as_current=False)
    app.conf.broker_transport = "worker.broker.transport:Transport"

    app.send_task("tests.elsewhere", task_id="a")

    with redis.Redis.from_url(redis_url) as client:
        (entry,) = cast(list[bytes], client.lrange("celery", 0, -1))
    assert json.loads(entry)["headers"]["id"] == "a"
    app.close()


@pytest.fixture
def left(redis_url: str) -> Iterator[redis.Redis]:
    """Redis with a message in kombu's keys that a stock consumer popped two hours ago."""
    plain = Celery("plain", broker=redis_url, set_as_current=False)
    plain.send_task("tests.elsewhere", task_id="a")
    connection = plain.connection_for_read()
    channel = connection.default_channel
    assert channel.basic_get("celery").headers["id"] == "a"
    channel.qos._delivered.clear()  # as if it were killed: it puts back nothing
    connection.release()
    plain.close()
    with redis.Redis.from_url(redis_url) as client:
        for tag, popped_at in cast(Any, client.zrange("unacked_index", 0, -1, withscores=True)):
            client.zadd("unacked_index", {tag: popped_at - 7200})
        assert client.llen("celery") == 0 and client.hlen("unacked") == 1
        yield client


def restore_visible(app: Celery) -> None:
    with app.connection_for_read() as connection:
        connection.default_channel.qos.restore_visible(num=10, interval=1)


def test_a_durable_worker_leaves_it_to_the_keeper_to_put_back_what_others_popped(
    app: Celery, left: redis.Redis
) -> None:
    restore_visible(app)

    assert (left.llen("celery"), left.hlen("unacked")) == (0, 1)
    assert left.exists("unacked_mutex") == 0


def test_without_a_writer_a_consumer_puts_back_what_others_popped(
    redis_url: str, left: redis.Redis
) -> None:
    app = Celery("plain", broker=redis_url, set_as_current=False)
    app.conf.broker_transport = "worker.broker.transport:Transport"

    restore_visible(app)

    assert (left.llen("celery"), left.hlen("unacked")) == (1, 0)
    app.close()
