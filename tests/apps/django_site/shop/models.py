from django.db import models


class Order(models.Model):
    """A table of the app's own; `jobs` is its, and not the ledger's."""

    item = models.CharField(max_length=100)
    packed = models.BooleanField(default=False)

    class Meta:
        db_table = "jobs"


class Tick(models.Model):
    at = models.DateTimeField(auto_now_add=True)
