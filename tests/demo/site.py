"""The demo's site: two tables, one page.  Ordinary Django, with no thought of pools."""

from __future__ import annotations

import time
from typing import ClassVar

from django.db import connection, models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

PRODUCTS = 200
OTHER_WORK = 0.05


class Product(models.Model):
    name = models.CharField(max_length=50)
    stock = models.IntegerField()

    objects: ClassVar[models.Manager[Product]] = models.Manager()

    class Meta:
        app_label = "demo"


class Order(models.Model):
    product = models.ForeignKey(Product, on_delete=models.CASCADE)

    objects: ClassVar[models.Manager[Order]] = models.Manager()

    class Meta:
        app_label = "demo"


def order_page(request: HttpRequest, product_id: int) -> JsonResponse:
    """Order a product: three looks at the database, other work in between."""
    product = Product.objects.get(pk=product_id)

    time.sleep(OTHER_WORK)  # the payment provider is asked

    with transaction.atomic():
        order = Order.objects.create(product=product)
        Product.objects.filter(pk=product_id).update(stock=models.F("stock") - 1)

    time.sleep(OTHER_WORK)  # the warehouse is told

    latest = Order.objects.filter(product=product).order_by("-pk")[:5]
    return JsonResponse({"order": order.pk, "latest": [each.pk for each in latest]})


urlpatterns = [path("order/<int:product_id>/", order_page)]


def create_tables() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Product)
        editor.create_model(Order)
    Product.objects.bulk_create(
        Product(name=f"product {number}", stock=1000) for number in range(PRODUCTS)
    )
