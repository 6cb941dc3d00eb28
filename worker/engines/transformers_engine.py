"""The transformers engine: a model's stock forward, on CUDA or the CPU.

Jobs run one after another in the engine's own thread. The model computes exactly what
`transformers` computes for it: nothing is fused, compiled or pruned but the logits of all positions
save the last.

Importing this module is cheap: torch and transformers come with the engine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from shared.errors import EngineError
from shared.schemes import DEFAULT, Proof
from shared.settings import Settings
from worker.engines import checkpoint
from worker.engines.base import DEFAULT_TILE, EngineInfo, FuturePending
from worker.engines.checkpoint import first_line
from worker.job import NO_BLOCK, Job

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from worker.engines.tile import Forward, Tiles

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A mixture of experts is none of them: how many rows an expert gets depends on the other nonces of
#: a tile, which moves the last bits of a distance.
ARCHITECTURES = checkpoint.DENSE


def load(settings: Settings) -> TransformersEngine:
    """The engine of `settings`. Raises `EngineError`."""
    checkpoint.find(settings.model)  # before torch is imported, which takes seconds
    try:
        from worker.engines import tile, weights  # noqa: F401 - all that the engine needs
    except ImportError as error:
        raise EngineError(
            f"the transformers engine can't be imported ({error}); pip install '.[cpu]' where "
            "poc-worker's source is"
        ) from error
    return TransformersEngine(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        gpu=settings.gpu,
        tile=settings.tile,
    )


class TransformersEngine:
    """A causal language model, its weights on one device."""

    def __init__(
        self,
        model: str | None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        gpu: str | None = None,
        tile: int | Literal["auto"] = "auto",
    ) -> None:
        """Load `model`, a checkpoint directory or a hub id.

        `dtype` auto is the checkpoint's own; `device` auto is cuda where there is one, else
        cpu. Raises `EngineError` that says what can't be loaded, why, and what to do.
        """
        directory = checkpoint.find(model)
        from worker.engines import weights
        from worker.engines.tile import Tiles
        from worker.schemes import Deployed, refused

        target = _choose_device(device, gpu)
        config = checkpoint.read_config(directory, ARCHITECTURES, quantized=False)
        dtype = checkpoint.dtype_of(directory, config, dtype)
        self._model = weights.load(directory, config, dtype, target)
        self._device = target
        self._tiles = Tiles(
            DEFAULT_TILE[target.type] if tile == "auto" else tile,
            Deployed(
                layers=config.num_hidden_layers,
                hidden_size=config.hidden_size,
                vocab_size=config.vocab_size,
                device=target,
                dtype=self._model.dtype,
            ),
        )
        self._edited: dict[str, Forward] = {}
        self._info = EngineInfo(
            model=str(model),
            device=_describe(target),
            fingerprint=checkpoint.fingerprint(directory),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_seq_len=checkpoint.longest(config),
            profile=_profile(self._model, target, self._tiles),
            exact=True,
            tile=self._tiles.size,
            without=refused(self._model, self._tiles.tensors),
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

        Raises `EngineError` for a `seq_len` that the model has no positions for, and after `close`.
        """
        self._info.check_length(job.seq_len)
        return FuturePending(self._begin(self._run, job))

    def time_forwards(
        self, seq_len: int, seconds: float, scheme: str = DEFAULT
    ) -> tuple[int, float]:
        """Nonces and seconds of forwards alone (see `TimesForwards`), in the thread of jobs."""
        self._info.check_length(seq_len)
        return self._begin(self._time_forwards, seq_len, seconds, scheme).result()

    def ensure_alive(self) -> None:
        """It lives as long as its process."""

    def close(self) -> None:
        """End the engine: the running job stops at its next tile, queued ones never start."""
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, call: Callable[..., T], *args: Any) -> Future[T]:
        """Queue a call in the engine's thread. Raises `EngineError` after `close`."""
        try:
            return self._thread.submit(call, *args)
        except RuntimeError:
            raise EngineError("the engine is closed; load another to compute") from None

    def _run(self, job: Job) -> list[Proof | None]:
        """Compute `job` in the engine's thread; whatever goes wrong becomes an `EngineError`."""
        import torch

        started = time.perf_counter()
        try:
            return self._compute(job)
        except EngineError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            problem = _out_of_memory(self._tiles.size, job.seq_len, error)
            self._tiles.forget()
        except Exception as error:
            log.exception("the engine failed on a job of %d nonces", len(job.nonces))
            problem = EngineError(f"the model can't compute the batch: {first_line(error)}")
        finally:
            self._busy_seconds += time.perf_counter() - started
        # Out here, since the exception's traceback would keep the failed job's tensors alive.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise problem

    def _compute(self, job: Job) -> list[Proof | None]:
        """One proof per nonce; all tiles are launched before the first result is awaited."""
        return self._tiles.proofs(self._tiles.launch(job, self._compute_tile), job)

    def _compute_tile(self, job: Job, nonces: Sequence[int], size: int) -> Tensor | None:
        if self._closing.is_set():
            raise EngineError("the engine was closed while it computed this job")
        return self._tiles.rows(job, nonces, self._forward_of(job.scheme), size)

    def _time_forwards(self, seq_len: int, seconds: float, scheme: str) -> tuple[int, float]:
        import torch

        from worker.engines.clock import keep_busy

        shape = self._tiles.size, seq_len, self._info.hidden_size
        inputs = torch.randn(shape, dtype=self._model.dtype, device=self._device)
        forward = self._forward_of(scheme)
        # Of any block: what a GPU draws, and so its clock, depends on the numbers.
        self._tiles.tensors(scheme).enter(Job(NO_BLOCK, "", (), seq_len))
        with torch.inference_mode():
            forwards, spent = keep_busy(lambda: forward(inputs), seconds, self._device)
        return forwards * self._tiles.size, spent

    def _forward_of(self, scheme: str) -> Forward:
        """The forward of a scheme; one with edited layers is made once."""
        tensors = self._tiles.tensors(scheme)
        if not tensors.edits:
            return self._logits  # which is not kept: a cycle would keep the weights
        if scheme not in self._edited:
            from worker.schemes.layers import edited

            self._edited[scheme] = _hidden_states(edited(self._model, tensors.edit))
        return self._edited[scheme]

    def _logits(self, inputs: Tensor) -> Tensor:
        output = self._model(inputs_embeds=inputs, use_cache=False, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1]
        return logits


def _hidden_states(inner: Any) -> Forward:
    """The forward of a model without its head, for the last positions after the final norm."""

    def forward(inputs: Tensor) -> Tensor:
        output = inner(inputs_embeds=inputs, use_cache=False)
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    return forward


def _choose_device(device: str, gpu: str | None) -> torch.device:
    """The device that `device` names; auto is cuda where there is one, else cpu.

    A process that is pinned to a `gpu` takes that or none: it is the only one it sees.
    """
    import torch

    if gpu is not None and (device == "cpu" or not torch.cuda.is_available()):
        why = "contradicts POC_DEVICE=cpu" if device == "cpu" else "torch sees no such GPU"
        raise EngineError(
            f"POC_GPU={gpu}: {why}; choose one that `nvidia-smi -L` lists, or unset POC_GPU to "
            "compute without one"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # No cuda:1: kernels run on the first GPU that this process sees, and POC_GPU chooses that.
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise EngineError(
            f"POC_DEVICE={device}: torch {torch.__version__} sees no such device; "
            "use POC_DEVICE=cpu, or install a torch built for this machine's GPU"
        )
    return torch.device(device)


def _describe(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _profile(model: Any, device: torch.device, tiles: Tiles) -> dict[str, str]:
    """What moves the last bits of a distance, weights aside."""
    return {
        "engine": "transformers",
        "generator": tiles.generator,
        "forward": "stock",
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device.type,
        # Nothing public says which one the library chose.
        "attention": str(model.config._attn_implementation),  # noqa: SLF001
        "tile": str(tiles.size),
        "tensor_parallel": "1",
        "quantization": "none",
    }


def _out_of_memory(tile: int, seq_len: int, error: BaseException) -> EngineError:
    return EngineError(
        f"out of memory with {tile} sequences of {seq_len} positions in one forward "
        f"({first_line(error)}); lower POC_TILE on every worker, or seq_len"
    )
