"""What a job is: its states and legal moves, its attempts, its retry policy.

Pure: no I/O, no third party, no settings.
"""
