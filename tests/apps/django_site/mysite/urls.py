from django.urls import path
from shop import views

urlpatterns = [
    path("order", views.order),
    path("order-undone", views.order_undone),
    path("result/<str:job_id>", views.result),
    path("every-second", views.every_second),
    path("ticks", views.ticks),
]
