# As Celery's guide for Django has it: the app is there when Django starts.
from mysite.celery import app as celery_app

__all__ = ["celery_app"]
