import json

from celery.result import AsyncResult
from django.db import transaction
from django.http import JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from shop import tasks
from shop.models import Order, Tick


@csrf_exempt
def order(request):
    wanted = json.loads(request.body)
    with transaction.atomic():
        made = Order.objects.create(item=wanted["item"])
        if wanted.get("lose"):
            tasks.lose.apply_async((made.id,), task_id=wanted["job"], countdown=wanted.get("in", 0))
        elif wanted.get("rest"):
            tasks.rest.apply_async((made.id,), task_id=wanted["job"])
        elif wanted.get("job"):
            tasks.pack.apply_async((made.id,), task_id=wanted["job"], countdown=wanted.get("in", 0))
        else:
            # Before the commit there is no order that a worker could find.
            tasks.pack.delay_on_commit(made.id)
    return JsonResponse({"id": made.id})


@csrf_exempt
def order_undone(request):
    """An order that is rolled back: nothing must be sent for it."""
    try:
        with transaction.atomic():
            made = Order.objects.create(item="undone")
            tasks.pack.delay_on_commit(made.id)
            raise LookupError
    except LookupError:
        return JsonResponse({"orders": Order.objects.filter(item="undone").count()})


def result(request, job_id):
    found = AsyncResult(job_id)
    return JsonResponse({"state": found.state, "result": str(found.result)})


@csrf_exempt
def every_second(request):
    schedule, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.get_or_create(name="tick", task="shop.tasks.tick", interval=schedule)
    return JsonResponse({})


def ticks(request):
    packed = list(Order.objects.filter(packed=True).values_list("item", flat=True))
    return JsonResponse({"ticks": Tick.objects.count(), "packed": packed})
