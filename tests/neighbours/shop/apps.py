from django.apps import AppConfig
from django.db import connections


class ShopConfig(AppConfig):
    """Uses the database as it starts, which Django advises against and projects do."""

    name = "neighbours.shop"

    def ready(self) -> None:
        for alias in connections:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
