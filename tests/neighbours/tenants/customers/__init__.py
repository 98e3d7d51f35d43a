"""The public schema: who the tenants are."""
