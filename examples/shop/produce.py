"""Place some orders, and wait until each is packed: `python -m shop.produce`."""

from celery import chain

from shop.app import app
from shop.tasks import book_carrier, pack


def main() -> None:
    """Enqueue, then wait, with Celery's own API."""
    app.set_current()
    results = [chain(book_carrier.s(order), pack.s()).delay() for order in range(1, 51)]
    print(f"{len(results)} orders are accepted: they are rows in Postgres now.")
    for result in results:
        print(result.get(timeout=120))


if __name__ == "__main__":
    main()
