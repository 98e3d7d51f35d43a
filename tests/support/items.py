"""The ORM's view of the one table that the tests have."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Item(models.Model):
    id = models.AutoField(primary_key=True)
    name = models.TextField(unique=True)

    objects: ClassVar[models.Manager[Item]] = models.Manager()

    class Meta:
        app_label = "items"
        db_table = "item"
        managed = False
