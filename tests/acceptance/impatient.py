"""A module of tasks whose app would give up on Redis after a single retry."""

from __future__ import annotations

from celery import current_app

current_app.conf.broker_connection_max_retries = 1
