"""A project with django-tenants: its engine, and an app for each kind of schema."""
