"""A shop: an ordinary Celery application, made durable."""
