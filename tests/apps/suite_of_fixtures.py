"""Tests as an app's developer has them, with the fixtures of `celery.contrib.pytest`."""

from __future__ import annotations

import os
from typing import Any

import pytest
from celery import Celery, shared_task

from worker.runtime import durable

app = Celery("suite", broker=os.environ["SHOP_REDIS"], backend=os.environ["SHOP_REDIS"])
durable(app)  # the one line
app.conf.task_default_queue = "suite"


@shared_task
def multiply(x: Any, y: Any) -> Any:
    return x * y


@pytest.fixture(scope="module")
def celery_app() -> Any:
    return app


@pytest.fixture(scope="session")
def celery_worker_parameters() -> dict[str, Any]:
    return {"perform_ping_check": False}  # its task is in a module that the app does not import


def test_a_task_and_a_chain(celery_app: Any, celery_worker: Any) -> None:
    assert multiply.delay(4, 4).get(timeout=20) == 16
    assert (multiply.s(2, 2) | multiply.s(3)).delay().get(timeout=20) == 12


def test_the_next_test_has_a_worker_too(celery_app: Any, celery_worker: Any) -> None:
    with pytest.raises(TypeError):
        multiply.delay(None, None).get(timeout=20)
