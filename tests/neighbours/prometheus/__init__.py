"""Engines made from the backend of django-prometheus, as a user would write them."""
