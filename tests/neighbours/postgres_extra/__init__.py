"""An engine made from the backend of django-postgres-extra, as a user would write it."""
