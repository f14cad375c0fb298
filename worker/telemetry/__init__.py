"""Logs: what happened, for people and for machines. May not: change what happens."""
