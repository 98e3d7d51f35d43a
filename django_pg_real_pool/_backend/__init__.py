"""Django's side: each method here translates one call of Django's for the lease."""
