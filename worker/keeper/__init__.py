"""The keeper: finds what should be running but is not. One duty per file.

May touch: ledger, broker. May not: run jobs.
"""
