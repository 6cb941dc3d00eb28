"""What is computed: nonces, and all that their proofs depend on besides the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from shared.config import PoCConfig
from shared.schemes import DEFAULT

#: A block that no chain has, for forwards that are only timed or compared.
NO_BLOCK = "poc-no-block"


@dataclass(frozen=True, slots=True)
class Job:
    """Nonces to compute: the same work for generation and for anybody's validation."""

    block_hash: str
    public_key: str
    nonces: tuple[int, ...]
    seq_len: int
    strong_rng: bool = False
    scheme: str = DEFAULT
    #: Of the scheme: see `Terms.parameters`.
    parameters: dict[str, int] = field(default_factory=dict, hash=False)
    #: Rather fail than halve a tile for want of memory, which may move the last bits.
    whole_tiles: bool = False
    #: In no tile with other jobs, which would share what becomes of it.
    alone: bool = False

    @classmethod
    def of(
        cls, config: PoCConfig, public_key: str, nonces: Sequence[int], *, alone: bool = False
    ) -> Self:
        """The job that computes `nonces` of `public_key` in a round of `config`."""
        return cls(
            config.block_hash,
            public_key,
            tuple(nonces),
            config.seq_len,
            config.strong_rng,
            config.scheme,
            config.terms.parameters,
            alone=alone,
        )
