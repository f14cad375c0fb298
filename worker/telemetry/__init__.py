"""Logs, health: what happens, told to people and machines. May: end a process that is wedged."""
