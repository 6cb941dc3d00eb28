"""`python -m worker.cli` is `poc`."""

from worker.cli import main

main()
