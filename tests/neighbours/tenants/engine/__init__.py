"""What a user of django-tenants writes to release early."""
