"""An engine made from a backend of django-db-connection-pool, as a user would write it."""
