"""Chunks of validations as a worker gets them that asks for nothing else."""

from __future__ import annotations

from shared.store import Ask, Chunk, Store


def claim_chunk(store: Store, worker: str, token: str) -> Chunk | None:
    """The next chunk, or None."""
    work = store.work.claim(Ask(worker, token, ("chunk",)))
    assert work is None or isinstance(work, Chunk)
    return work
