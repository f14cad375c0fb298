"""The shop's Celery application."""

import os

from celery import Celery

from worker.runtime import durable

app = Celery(
    "shop",
    broker=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    include=["shop.tasks"],
)
app.conf.task_default_queue = "shop"

# The one line that is new: from here on every job is a row in Postgres before it is a message in
# Redis, whether a producer or a worker imports this.
durable(app)
