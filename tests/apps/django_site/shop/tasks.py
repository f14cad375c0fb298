import time

from celery import shared_task

from shop.models import Order, Tick


@shared_task(bind=True)
def pack(self, order_id):
    order = Order.objects.get(id=order_id)  # it is committed: the task was sent after that
    order.packed = True
    order.save()
    return {"packed": order.item, "try": self.request.retries}


@shared_task
def lose(order_id):
    raise LookupError(f"order {order_id} is lost")


@shared_task
def rest(order_id):
    while not Order.objects.filter(id=order_id, packed=True).exists():
        time.sleep(0.05)
    return "rested"


@shared_task(ignore_result=True)
def tick():
    Tick.objects.create()
