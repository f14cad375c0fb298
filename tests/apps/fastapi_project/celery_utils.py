"""The Celery app is `celery.current_app`, as a well-known guide for FastAPI has it."""

from __future__ import annotations

import os
from typing import Any

from celery import current_app as current_celery_app
from celery.result import AsyncResult

from fastapi_project.config import settings


def create_celery() -> Any:
    celery_app: Any = current_celery_app
    celery_app.config_from_object(settings, namespace="CELERY")
    if os.environ.get("SHOP_DURABLE"):
        from worker.runtime import durable

        durable(celery_app)  # the one line
    return celery_app


def get_task_info(task_id: str) -> dict[str, Any]:
    task: AsyncResult[Any] = AsyncResult(task_id)
    response: dict[str, Any] = {"state": task.state}
    if task.state == "FAILURE":
        response["error"] = str(task.result)
    if task.state == "SUCCESS":
        response["result"] = task.result
    return response
