"""An ordinary Django project, run by servers and workers: see `neighbours.processes`."""
