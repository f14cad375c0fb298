"""The command line: one file per group of commands. May touch: every room. May not: decide."""
