pytest_plugins = ["django_pg_real_pool.testing"]
