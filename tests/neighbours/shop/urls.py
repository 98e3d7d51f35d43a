from django.http import HttpRequest, HttpResponse
from django.urls import path

from .models import Order


def order(request: HttpRequest, number: int) -> HttpResponse:
    Order.objects.create(number=number)
    return HttpResponse(f"{Order.objects.count()} orders")


urlpatterns = [path("order/<int:number>/", order)]
