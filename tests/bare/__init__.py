"""Runs the README's commands on a bare machine, as somebody does who has just come."""
