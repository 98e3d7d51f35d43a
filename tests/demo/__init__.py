"""The main job in front of your eyes: `nox -s demo`."""
