"""Tasks, some of which a topic routes, and the handler that feeds the web sockets."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import shared_task
from celery.signals import task_postrun

CHANNEL = "task-status"


@shared_task
def add(x: int, y: int, pause: float = 0.0) -> int:
    time.sleep(pause)
    return x + y


@shared_task(name="mail:send.welcome", bind=True)
def send_welcome(self: Any, address: str) -> dict[str, Any]:
    return {"to": address, "key": self.request.delivery_info["routing_key"]}


@shared_task(name="image:resize")
def resize(width: int) -> int:
    return width // 2


@shared_task
def broken() -> None:
    raise RuntimeError("no picture")


@task_postrun.connect
def task_postrun_handler(task_id: str, **_: Any) -> None:
    """Tell the web server's sockets that this task's state is to be read anew."""
    from fastapi_project.celery_utils import get_task_info

    with redis.Redis.from_url(os.environ["SHOP_REDIS"]) as client:
        client.publish(
            f"{CHANNEL}:{task_id}", json.dumps({"id": task_id, "seen": get_task_info(task_id)})
        )
