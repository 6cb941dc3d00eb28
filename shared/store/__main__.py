"""`python -m shared.store` prints the table of keys, as docs/redis.md has it."""

from shared.store.keys import table

print(table())  # noqa: T201
