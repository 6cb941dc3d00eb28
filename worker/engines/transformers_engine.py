"""The transformers engine: a model's stock forward, on any device that torch knows.

One job, in the engine's own thread:

    nonces --tiles--> inputs --model--> last logits --permutations, target--> distances

The model computes exactly what `transformers` computes for it: nothing is fused, compiled or
pruned but the logits of all positions save the last. Work is cut into tiles of a constant
shape, the last one padded, so that a nonce meets the same kernels whatever batch it came in.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import EngineError
from worker import gpu_random
from worker.engines import checkpoint, weights
from worker.engines.base import EngineInfo, FuturePending, Job
from worker.engines.checkpoint import first_line

logger = logging.getLogger(__name__)

#: Sequences in one forward, unless the settings say otherwise.
DEFAULT_TILE_CPU = 8
DEFAULT_TILE_GPU = 32

#: Targets kept: a round's own, and those of the blocks that validators ask about.
_TARGETS_KEPT = 8

_DTYPES = ("auto", "float32", "bfloat16", "float16")


class TransformersEngine:
    """A causal language model, its weights on one device."""

    def __init__(
        self,
        model: str | None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        gpu: str | None = None,
        tile: int | None = None,
    ) -> None:
        """Load `model`, a checkpoint directory or a hub id.

        `dtype` auto is the checkpoint's own; `device` auto is cuda where there is one, else
        cpu. Raises `EngineError` that says what can't be loaded, why, and what to do.
        """
        if dtype not in _DTYPES:
            raise EngineError(f"POC_DTYPE={dtype}: must be one of {', '.join(_DTYPES)}")
        target = _choose_device(device, gpu)
        directory = checkpoint.find(model)
        config = checkpoint.read_config(directory, "transformers")
        self._model = weights.load(directory, config, dtype, target)
        self._device = target
        self._tile = tile or (DEFAULT_TILE_GPU if target.type == "cuda" else DEFAULT_TILE_CPU)
        self._info = EngineInfo(
            model=str(model),
            device=_describe(target),
            fingerprint=checkpoint.fingerprint(directory),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_seq_len=config.max_position_embeddings,
            profile=_profile(self._model, target, self._tile),
            exact=target.type in ("cpu", "cuda"),
        )
        # Bound to values, not to self: a cycle would keep the weights until the next collection.
        self._target = lru_cache(maxsize=_TARGETS_KEPT)(
            partial(gpu_random.generate_target, vocab_size=config.vocab_size, device=target)
        )
        self._busy_seconds = 0.0
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="poc-engine")

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        return self._info

    @property
    def busy_seconds(self) -> float:
        """Seconds that the engine's thread has spent on jobs, from first launch to last result."""
        return self._busy_seconds

    def submit(self, job: Job) -> FuturePending:
        """Queue `job` and return at once; the next queued job starts right after the last.

        Raises `EngineError` for a `seq_len` that the model has no positions for (unchecked it
        would give numbers, but no meaningful ones), and after `close`.
        """
        if not 1 <= job.seq_len <= self._info.max_seq_len:
            raise EngineError(
                f"seq_len={job.seq_len}: {self._info.model} computes 1 to "
                f"{self._info.max_seq_len} positions; choose a seq_len in that range"
            )
        try:
            return FuturePending(self._thread.submit(self._run, job))
        except RuntimeError:
            raise EngineError("the engine is closed; load another to compute") from None

    def ensure_alive(self) -> None:
        """It lives as long as its process."""

    def close(self) -> None:
        """End the engine: the running job stops at its next tile, queued ones never start."""
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Job) -> list[float]:
        """Compute `job` in the engine's thread; whatever goes wrong becomes an `EngineError`."""
        started = time.perf_counter()
        try:
            return self._compute(job)
        except EngineError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            problem = _out_of_memory(self._tile, job.seq_len, error)
        except Exception as error:
            logger.exception("the engine failed on a job of %d nonces", len(job.nonces))
            problem = EngineError(f"the model can't compute the batch: {first_line(error)}")
        finally:
            self._busy_seconds += time.perf_counter() - started
        # Out here, since the exception's traceback would keep the failed job's tensors alive.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise problem

    @torch.inference_mode()
    def _compute(self, job: Job) -> list[float]:
        """One distance per nonce; all tiles are launched before the first result is awaited."""
        distances = [self._compute_tile(job, nonces) for nonces in self._tiles(job.nonces)]
        # The only wait for the device in a job. float32 to Python float is exact.
        values: list[float] = torch.cat(distances).tolist() if distances else []
        return [value if math.isfinite(value) else math.nan for value in values]

    def _tiles(self, nonces: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(nonces), self._tile):
            if self._closing.is_set():
                raise EngineError("the engine was closed while it computed this job")
            yield nonces[start : start + self._tile]

    def _compute_tile(self, job: Job, nonces: Sequence[int]) -> Tensor:
        """Distances of at most one tile of nonces: float32 [len(nonces)], on the device."""
        padding = [nonces[-1]] * (self._tile - len(nonces))
        padded = [*nonces, *padding]
        inputs = gpu_random.generate_inputs(
            job.block_hash,
            job.public_key,
            padded,
            self._info.hidden_size,
            job.seq_len,
            self._device,
            self._model.dtype,
            strong_rng=job.strong_rng,
        )
        output = self._model(inputs_embeds=inputs, use_cache=False, logits_to_keep=1)
        permutations = gpu_random.generate_permutations(
            job.block_hash, job.public_key, padded, self._info.vocab_size, self._device
        )
        distances = gpu_random.compute_distances(
            output.logits[:, -1], permutations, self._target(job.block_hash)
        )
        return distances[: len(nonces)]


def _choose_device(device: str, gpu: str | None) -> torch.device:
    """The device that `device` names; auto never picks mps, whose numbers nobody has checked.

    A process that is pinned to a `gpu` takes that or none: it is the only one it sees.
    """
    if gpu is not None and (device == "cpu" or not torch.cuda.is_available()):
        why = "contradicts POC_DEVICE=cpu" if device == "cpu" else "torch sees no such GPU"
        raise EngineError(
            f"POC_GPU={gpu}: {why}; choose one that `nvidia-smi -L` lists, or unset POC_GPU to "
            "compute without one"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")  # a name that torch does not know: refused below
    usable = {
        "cpu": True,
        "cuda": (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not usable.get(chosen.type, False):
        raise EngineError(
            f"POC_DEVICE={device}: torch {torch.__version__} sees no such device; "
            "use POC_DEVICE=cpu, or install a torch built for this machine's GPU"
        )
    return chosen


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _profile(model: PreTrainedModel, device: torch.device, tile: int) -> dict[str, str]:
    """What moves the last bits of a distance, weights aside."""
    return {
        "engine": "transformers",
        "forward": "stock",
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device.type,
        # Nothing public says which one the library chose.
        "attention": str(model.config._attn_implementation),  # noqa: SLF001
        "tile": str(tile),
        "tensor_parallel": "1",
        "quantization": "none",
    }


def _out_of_memory(tile: int, seq_len: int, error: BaseException) -> EngineError:
    return EngineError(
        f"out of memory with {tile} sequences of {seq_len} positions in one forward "
        f"({first_line(error)}); lower POC_TILE on every worker, or seq_len"
    )
