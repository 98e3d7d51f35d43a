from __future__ import annotations

from typing import Any, ClassVar

from django.db import models


class Note(models.Model):
    owner = models.TextField()
    number = models.IntegerField()

    objects: ClassVar[models.Manager[Any]] = models.Manager()
