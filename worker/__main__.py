"""`python -m worker` is the `worker` command."""

from worker.cli.main import main

main()
