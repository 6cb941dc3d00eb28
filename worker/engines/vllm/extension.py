"""What runs inside vLLM's worker process: nonces in, proofs out, on the deployed model.

vLLM mixes `PoCWorkerExtension` into its worker (`worker_extension_cls`); the engine calls its
methods by name (`collective_rpc`), each on every rank of a tensor parallel group. Nothing but
nonces and proofs leaves the process. `poc_launch` queues a job on the device and returns,
`poc_collect` waits for it.
"""

from __future__ import annotations

from typing import Any

from shared.schemes import DEFAULT, Proof
from worker.children import die_with_parent
from worker.engines.vllm.rank import Rank
from worker.job import Job

# A rank of a tensor parallel group would notice the end of vLLM's engine only once it has loaded
# its part of the model, or never, if it hangs. vLLM imports this file before it loads.
die_with_parent()


class PoCWorkerExtension:
    """Mixed into vLLM's worker. Only what starts with `poc_`, so that no name of its own is hit."""

    def poc_prepare(
        self, tile: int, max_tokens: int, prunes: bool = True, scheme: str = DEFAULT
    ) -> dict[str, Any]:
        """Allocate the scratch for tiles of `tile` sequences, `max_tokens` at most; what vLLM is.

        Called before any job, and again if another tile was found to be better. The forward of
        `scheme` is compiled now, those of others at their first job. With `prunes` the last layer
        may be pruned and MLPs fused; without, all layers are vLLM's own, to compare with.
        """
        if before := vars(self).pop("poc_rank", None):
            before.close()  # its memory, before the next takes its own
            del before
        self.poc_rank = Rank(self, tile, max_tokens, prunes=prunes)
        return self.poc_rank.prepare(scheme)

    def poc_time(self, tile: int, seq_len: int, count: int, scheme: str = DEFAULT) -> float:
        """Seconds on the device of `count` forwards of `tile` sequences, at most the prepared tile.

        They are counted, not clocked: the ranks of a group must do equally many.
        """
        return self.poc_rank.time(tile, seq_len, count, scheme)

    def poc_launch(self, handle: int, job: dict[str, Any]) -> bool:
        """Queue `job` (the fields of `Job`) under `handle`; whether the device still computes.

        Raises if the job could not be queued as a whole; then nothing is left of it.
        """
        return self.poc_rank.launch(handle, Job(**job))

    def poc_collect(self, handle: int) -> tuple[list[Proof | None], float]:
        """Wait for a job: its proofs (empty on a rank without logits), its device seconds."""
        return self.poc_rank.collect(handle)

    def poc_without(self) -> dict[str, str]:
        """The schemes that can't be computed, and why, as far as is known: a first job may tell."""
        return self.poc_rank.model.without
