"""What the shop does later. Nothing here knows of the ledger."""

import random
import time

from celery import shared_task


class CarrierBusy(Exception):
    """The carrier's service said: later."""


@shared_task(autoretry_for=(CarrierBusy,), retry_backoff=True, max_retries=5)
def book_carrier(order: int) -> str:
    """Book a parcel; the carrier is busy now and then."""
    if random.random() < 0.3:
        raise CarrierBusy(f"no slot for order {order} now")
    return f"parcel-{order}"


@shared_task
def pack(parcel: str) -> str:
    """Pack it, which takes a while."""
    time.sleep(random.uniform(0.2, 1.0))
    return f"{parcel} is packed"
