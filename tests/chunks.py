"""Chunks of validations as a worker gets them that asks for nothing else, and verdicts on them."""

from __future__ import annotations

from collections.abc import Collection

from shared.schemes import Verdict
from shared.store import Ask, Chunk, ComputedValidation, Store


def claim_chunk(
    store: Store, worker: str, token: str, schemes: Collection[str] | None = None
) -> Chunk | None:
    """The next chunk, or None."""
    work = store.work.claim(Ask(worker, token, ("chunk",), schemes=schemes))
    assert work is None or isinstance(work, Chunk)
    return work


def verdict_on(done: ComputedValidation) -> Verdict:
    """What a clerk comes to."""
    return done.config.terms.judge(done.batch, done.proofs)
