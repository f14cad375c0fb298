"""What `celery --config` names: settings that a durable app does without."""

broker_url = "redis://127.0.0.1:9/9"
result_backend = "rpc://"
worker_consumer = "celery.worker.consumer:Consumer"
