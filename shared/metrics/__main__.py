"""`python -m shared.metrics` prints the table of metrics, as docs/metrics.md has it."""

from shared.metrics import table

print(table())  # noqa: T201
