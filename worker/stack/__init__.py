"""The embedded local stack: real Postgres and Redis from wheels, and every service, supervised.

May touch: processes and files. May not: import Celery, or a room below but settings and errors.
"""
