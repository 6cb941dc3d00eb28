"""Work as a worker takes it, of either kind: a batch of the round, a chunk of a validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.store.ask import Ask
from shared.store.rounds import Claim, Computed, Rounds
from shared.store.validations import Chunk, Validations

#: A batch of the round, or a part of a validation, that one worker computes under a lease.
Assignment = Claim | Chunk


class Work:
    """The work of a namespace."""

    def __init__(self, rounds: Rounds, validations: Validations) -> None:
        self._rounds, self._validations = rounds, validations

    def claim(self, ask: Ask) -> Assignment | None:
        """The next work, or None."""
        while True:
            round_id, answer = self._rounds.answer_to_claim(ask)
            if "idle" in answer:
                return None
            if work := self._work_of(ask, round_id, answer):
                return work

    def commit_and_claim(
        self, claim: Claim, computed: Computed, ask: Ask
    ) -> tuple[str | None, Assignment | None]:
        """`Rounds.commit`, and a claim in the same step: why it was refused, and the next work.

        None for the next work is no last word: `claim` may find some.
        """
        answer = self._rounds.answer_to_commit(claim, computed, ask)
        work = self._work_of(ask, claim.round_id, answer) if "claim" in answer else None
        return answer.get("refused"), work

    def _work_of(self, ask: Ask, round_id: str, answer: Mapping[str, Any]) -> Assignment | None:
        if answer["kind"] == "chunk":
            return self._validations.chunk_of(ask, answer)
        return self._rounds.claim_of(ask, round_id, answer)
