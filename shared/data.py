"""What travels between nodes in the published scheme: a batch of proofs, and the verdict on one."""

from shared.schemes.distance import PROBABILITY_MISMATCH, ProofBatch, ValidatedBatch

__all__ = ["PROBABILITY_MISMATCH", "ProofBatch", "ValidatedBatch"]
