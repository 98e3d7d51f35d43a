"""`ENGINE = "django_pg_real_pool.postgis"`: GeoDjango, with Django's own pool."""
