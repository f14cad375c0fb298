"""What a parcel service does later. Nothing here knows of containers, nor of the ledger."""

from celery import shared_task


@shared_task(name="parcels.postage")
def postage(grams: int) -> float:
    """The price of a parcel."""
    if grams <= 0:
        raise ValueError(f"a parcel cannot weigh {grams} g")
    return 4.0 + 0.5 * -(-grams // 500)
