"""What a real stock Celery worker leaves in Redis when it is killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import redis
from celery import Celery

from tests.ledger import given
from tests.processes import Processes
from worker.broker.messages import foreign_job
from worker.keeper import restorer as restorer_module
from worker.keeper.keeper import Post
from worker.keeper.restorer import Restorer


def test_the_restorer_puts_back_what_a_killed_stock_worker_held(
    post: Post, redis_url: str, processes: Processes, tmp_path: Path
) -> None:
    # Given a stock worker with late acknowledgement, a job that it runs and one with an ETA
    log = tmp_path / "side.log"
    argv = [sys.executable, "-m", "celery", "-A", "tests.acceptance.side_by_side_app", "worker"]
    stock = processes([*argv, "-P", "solo"], {"SIDE": "late", "SIDE_LOG": str(log)})
    with Celery("stock", broker=redis_url, set_as_current=False) as app:
        later = app.send_task("side.work", ["later", 0], countdown=7200).id
        with redis.Redis.from_url(redis_url) as client:
            given.until(lambda: client.hlen("unacked") == 1)
            running = app.send_task("side.work", ["running", 600]).id
            given.until(log.exists)

            # When it is killed, then nothing happens for an hour
            stock.kill()
            Restorer().run(post)
            assert (client.llen("celery"), client.hlen("unacked")) == (0, 2)

            # And then both are there again, to be adopted
            for tag in cast(list[bytes], client.zrange("unacked_index", 0, -1)):
                client.zincrby("unacked_index", -restorer_module.STOCK_VISIBILITY_SECONDS, tag)
            assert not Restorer().run(post)
    jobs = {
        job.id: job
        for item in post.doorbells.pop(["celery"], 10)
        for job in [foreign_job(item.list, item.entry)]
    }
    assert jobs.keys() == {later, running}
    assert jobs[running].is_due and not jobs[later].is_due
