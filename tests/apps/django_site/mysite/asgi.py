import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
pages = get_asgi_application()

from shop.consumers import JobConsumer  # noqa: E402 -- Django is set up by now

sockets = URLRouter([path("ws/<str:job_id>", JobConsumer.as_asgi())])
application = ProtocolTypeRouter({"http": pages, "websocket": sockets})
