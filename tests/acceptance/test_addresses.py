"""Jobs that are addressed by exchanges, on real workers; and what no worker can serve."""

from __future__ import annotations

import sys

import redis
from celery import Celery
from kombu import Exchange, Queue

from tests.acceptance.conftest import Service
from worker.runtime import durable
from worker.settings import Settings

NEWS = Exchange("news", type="topic")

APP = """
import os
from celery import Celery
from kombu import Exchange, Queue
from kombu.common import Broadcast
from worker.runtime import durable

NEWS = Exchange("news", type="topic")
app = Celery("routed")
app.conf.task_queues = [Queue("plain"), Queue("sport", NEWS, routing_key="sport.#")]
app.conf.task_default_queue = "plain"
if os.environ.get("WITH_BROADCAST"):
    app.conf.task_queues.append(Broadcast("bulletin"))
durable(app)


@app.task(bind=True, max_retries=1)
def twice(self):
    if not self.request.retries:
        raise self.retry(countdown=0, exchange="news", routing_key="sport.retry")
    return self.request.retries


@app.task
def to_everybody():
    app.send_task("routed.twice", queue=Queue("e", Exchange("everybody", type="fanout")))
"""


def test_a_worker_runs_what_is_addressed_by_topic_and_refuses_broadcasts(
    service: Service, settings: Settings, redis_url: str
) -> None:
    (service.folder / "routed.py").write_text(APP)
    path = {"PYTHONPATH": str(service.folder)}
    argv = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "routed",
        "worker",
        "-P",
        "threads",
        "-c",
        "2",
        "-l",
        "info",
    ]
    refused = service.processes(argv, {**path, "WITH_BROADCAST": "1"})
    worker = service.processes(argv, path)
    service.keeper()
    worker.wait_for_line("ready.")
    app = Celery("sender", set_as_current=False)
    app.conf.task_queues = [Queue("plain"), Queue("sport", NEWS, routing_key="sport.#")]
    app.conf.task_default_queue = "plain"
    durable(app, settings)
    with app, redis.Redis.from_url(redis_url) as client:
        client.delete("_kombu.binding.news")
        done = app.send_task("routed.twice", exchange="news", routing_key="sport.x")
        failed = app.send_task("routed.to_everybody")
        linked = app.send_task(
            "routed.twice",
            link=app.signature("routed.twice").set(exchange="nowhere", routing_key="x"),
        )
        job = service.ended(done.id)
        assert (job.queue, job.state) == ("sport", "succeeded")
        assert "fanout exchange" in str(service.ended(failed.id).error)
        assert service.ended(linked.id).state.is_final
    assert refused.wait() == 2
    assert "serves direct and topic exchanges only" in refused.output
    assert "Traceback" not in refused.output
