"""The project's Celery app, in the order of Celery's guide for Django."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

app = Celery("mysite")
if os.environ.get("SHOP_DURABLE"):
    from worker.runtime import durable

    durable(app)  # the one line
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
