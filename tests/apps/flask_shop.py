"""A Flask app with long jobs and a status page that polls them, as Flask's guide has it."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task, shared_task
from celery.result import AsyncResult
from flask import Flask, jsonify, request, url_for


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    if os.environ.get("SHOP_DURABLE"):
        from worker.runtime import durable

        durable(celery_app)  # the one line
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


@shared_task(bind=True, ignore_result=False)
def long_task(self: Any, steps: int, pause: float) -> dict[str, Any]:
    for done in range(steps):
        message = f"step {done}"
        self.update_state(
            state="PROGRESS", meta={"current": done, "total": steps, "status": message}
        )
        time.sleep(pause)
    return {"current": steps, "total": steps, "status": "Task completed!", "result": 42}


@shared_task(ignore_result=False)
def quiet_task(pause: float) -> dict[str, Any]:
    time.sleep(pause)
    return {"current": 1, "total": 1, "status": "done"}


@shared_task(ignore_result=False)
def broken_task() -> None:
    raise KeyError("it broke")


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        CELERY={
            "broker_url": os.environ["SHOP_REDIS"],
            "result_backend": os.environ["SHOP_REDIS"],
            "task_ignore_result": True,
        },
    )
    app.config.from_prefixed_env()
    celery_init_app(app)

    @app.post("/start/<name>")
    def start(name: str) -> Any:
        tasks = {"long": long_task, "quiet": quiet_task, "broken": broken_task}
        job = tasks[name].apply_async(kwargs=request.get_json())
        return jsonify(id=job.id, status=url_for("status", job_id=job.id))

    @app.get("/status/<job_id>")
    def status(job_id: str) -> Any:
        job: AsyncResult[Any] = AsyncResult(job_id)
        if job.state == "PENDING":
            answer = {"state": job.state, "current": 0, "total": 1, "status": "Pending..."}
        elif job.state != "FAILURE":
            # As the well-known tutorial has it: whatever is not pending has a dict as its info.
            answer = {
                "state": job.state,
                "current": job.info.get("current", 0),
                "total": job.info.get("total", 1),
                "status": job.info.get("status", ""),
            }
            if "result" in job.info:
                answer["result"] = job.info["result"]
        else:
            answer = {"state": job.state, "current": 1, "total": 1, "status": str(job.info)}
        return jsonify(answer)

    return app
