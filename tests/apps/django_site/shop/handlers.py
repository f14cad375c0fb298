"""Signals feed the web sockets, through the channel layer."""

from asgiref.sync import async_to_sync
from celery.result import AsyncResult
from celery.signals import task_failure, task_success
from channels.layers import get_channel_layer


def _tell(job_id, what):
    message = {"type": "job.ended", "what": what, "state": AsyncResult(job_id).state}
    async_to_sync(get_channel_layer().group_send)(f"job-{job_id}", message)


@task_success.connect
def on_success(sender, result, **_):
    if sender.name == "shop.tasks.pack":
        _tell(sender.request.id, "success")


@task_failure.connect
def on_failure(task_id, **_):
    _tell(task_id, "failure")
