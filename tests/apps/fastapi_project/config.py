"""Configuration, as FastAPI projects have it: a class, whose names begin with CELERY_."""

from __future__ import annotations

import os
from typing import Any

from kombu import Exchange, Queue


def route_task(
    name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any
) -> dict[str, Any]:
    """Send `queue:name` to that queue by its topic, and all others to the default."""
    if ":" in name:
        queue, _, rest = name.partition(":")
        return {"queue": queue, "routing_key": f"{queue}.{rest}"}
    return {"queue": "default"}


class Settings:
    CELERY_BROKER_URL = os.environ["SHOP_REDIS"]
    CELERY_RESULT_BACKEND = os.environ["SHOP_REDIS"]
    CELERY_TASK_DEFAULT_QUEUE = "default"
    CELERY_TASK_CREATE_MISSING_QUEUES = False
    CELERY_TASK_QUEUES = (
        Queue("default", Exchange("default"), routing_key="default"),
        Queue("mail", Exchange("work", type="topic"), routing_key="mail.#"),
        Queue("image", Exchange("work", type="topic"), routing_key="image.*"),
    )
    CELERY_TASK_ROUTES = (route_task,)


settings = Settings()
