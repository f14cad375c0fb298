from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "shop"
    default = True

    def ready(self) -> None:
        from shop import handlers  # noqa: F401 -- connects the signals
