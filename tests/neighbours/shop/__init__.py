"""A small project whose tests are run by pytest-django and pytest-xdist."""
