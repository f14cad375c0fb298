"""What `celery -A flask_worker` imports, as in Flask's guide."""

from __future__ import annotations

from flask_shop import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
