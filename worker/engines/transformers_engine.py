"""The transformers engine: a model's stock forward, on any device that torch knows.

One job, in the engine's own thread:

    nonces --tiles--> inputs --model--> last logits --permutations, target--> distances

The model computes exactly what `transformers` computes for it: nothing is fused, compiled or
pruned but the logits of all positions save the last. Work is cut into tiles of a constant
shape, the last one padded, so that a nonce meets the same kernels whatever batch it came in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from shared.errors import EngineError
from worker import gpu_random
from worker.engines.base import EngineInfo, Job, JobCancelled

logger = logging.getLogger(__name__)

#: Architectures that are known to give the right numbers: each has a test that holds its
#: distances against an independent computation. Anything else is refused, not guessed at:
#: multimodal positions, recurrent state and per-layer embeddings need more than inputs_embeds,
#: and how many rows an expert of a mixture gets depends on the other nonces of a tile, which
#: moves the last bits of a distance.
ARCHITECTURES = frozenset({"gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"})

#: Sequences in one forward, unless the settings say otherwise.
DEFAULT_TILE_CPU = 8
DEFAULT_TILE_GPU = 32

#: Targets kept: a round's own, and those of the blocks that validators ask about.
_TARGETS_KEPT = 8

#: Keys of config.json that say where a model came from or how to run it, not what it computes.
_NOT_THE_MODEL = frozenset({"_name_or_path", "_commit_hash", "transformers_version", "use_cache"})

_DTYPES = ("auto", "float32", "bfloat16", "float16")

_REMEDY = "set POC_MODEL to a model directory or hub id, or make one with `poc make-model`"


class TransformersPending:
    """A job that was queued on a `TransformersEngine`."""

    def __init__(self, future: Future[list[float]]) -> None:
        self._future = future

    def result(self) -> list[float]:
        """Wait for the job; one distance per nonce. Raises `EngineError` if it failed."""
        try:
            return self._future.result()
        except CancelledError:
            raise JobCancelled from None

    def cancel(self) -> bool:
        """Drop the job unless the engine's thread has begun it."""
        return self._future.cancel()


class TransformersEngine:
    """A causal language model, its weights on one device."""

    def __init__(
        self,
        model: str | None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        tile: int | None = None,
    ) -> None:
        """Load `model`, a checkpoint directory or a hub id.

        `dtype` auto is the checkpoint's own; `device` auto is cuda where there is one, else
        cpu. Raises `EngineError` that says what can't be loaded, why, and what to do.
        """
        if dtype not in _DTYPES:
            raise EngineError(f"POC_DTYPE={dtype}: must be one of {', '.join(_DTYPES)}")
        target = _choose_device(device)
        directory = _find_checkpoint(model)
        config = _load_config(directory)
        self._model = _load_model(directory, config, dtype, target)
        self._device = target
        self._tile = tile or (DEFAULT_TILE_GPU if target.type == "cuda" else DEFAULT_TILE_CPU)
        self._info = EngineInfo(
            model=str(model),
            device=_describe(target),
            fingerprint=fingerprint(directory),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_seq_len=config.max_position_embeddings,
            profile=_profile(self._model, target, self._tile),
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

    def submit(self, job: Job) -> TransformersPending:
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
            return TransformersPending(self._thread.submit(self._run, job))
        except RuntimeError:
            raise EngineError("the engine is closed; load another to compute") from None

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
            problem = EngineError(f"the model can't compute the batch: {_first_line(error)}")
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


def fingerprint(directory: Path) -> str:
    """Name the model in `directory`: a SHA-256 over its config and its safetensors, in hex.

    The config counts as its values, without paths and versions; the weights as their files'
    bytes, so the same tensors cut into other shards are another model. Files are streamed.
    """
    config = json.loads((directory / "config.json").read_text())
    model = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(model, sort_keys=True, separators=(",", ":")).encode())
    files = _weight_files(directory)
    with ThreadPoolExecutor(thread_name_prefix="poc-fingerprint") as pool:  # hashing frees the GIL
        for file, content in zip(files, pool.map(_file_digest, files), strict=True):
            digest.update(f"\n{file.name}:{content}".encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors that loading reads, by name: not what else lies beside them."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():  # transformers prefers it too
        return [single]
    if not index.is_file():
        raise EngineError(
            f"{directory}: has no model.safetensors and no index of shards, so there are no "
            f"weights to load (only safetensors are read); {_REMEDY}"
        )
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise EngineError(
            f"{directory}: lacks the weights {', '.join(missing)}; download the model again"
        )
    return [directory / name for name in names]


def _find_checkpoint(model: str | None) -> Path:
    """The local directory of `model`, fetched from the hub if it is no directory already."""
    if not model:
        raise EngineError(f"no model is configured; {_REMEDY}")
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    # A hub id is `name` or `owner/name`; anything else can only be meant as a path.
    if directory.is_absolute() or model.startswith(".") or len(directory.parts) > 2:
        raise EngineError(f"{model}: there is no such directory; {_REMEDY}")
    try:
        return Path(
            snapshot_download(
                model,
                allow_patterns=[
                    "config.json",
                    "model*.safetensors",
                    "model.safetensors.index.json",
                ],
            )
        )
    except Exception as error:  # the hub's errors have no common parent: network, 404, bad id
        raise EngineError(
            f"{model}: there is no such directory, and the hub did not give a model of that "
            f"name ({_first_line(error)}); {_REMEDY}"
        ) from error


def _load_config(directory: Path) -> PretrainedConfig:
    """The config in `directory`, refused unless it is of an architecture that is known to work."""
    if not (directory / "config.json").is_file():
        raise EngineError(f"{directory}: has no config.json, so it is no model; {_REMEDY}")
    try:
        # Never run code that came with a model, nor ask on a terminal whether to.
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a broken or unknown config makes the library raise
        raise EngineError(
            f"{directory}: its config.json can't be used ({_first_line(error)}); {_REMEDY}"
        ) from error
    refusal = _refusal(config)
    if refusal:
        raise EngineError(f"{directory}: {refusal}")
    return config


def _refusal(config: PretrainedConfig) -> str | None:
    """Why the engine can't compute a model of this config with the right numbers, if so."""
    if config.model_type not in ARCHITECTURES:
        return (
            f"the architecture {config.model_type!r} is not supported; "
            f"use a model of one of {', '.join(sorted(ARCHITECTURES))}"
        )
    classes = config.architectures or []
    if not any(name.endswith("ForCausalLM") for name in classes):
        return (
            f"holds {', '.join(classes) or 'no named class'}, which has no logits head; "
            "use a checkpoint of a causal language model (...ForCausalLM)"
        )
    if getattr(config, "quantization_config", None) is not None:
        return "is quantised, which the transformers engine is not tested with; use full weights"
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        return "has multimodal rotary positions (mrope); use a text-only model"
    if getattr(config, "use_bidirectional_attention", False):
        return "attends in both directions; use a causal language model"
    return None


def _load_model(
    directory: Path, config: PretrainedConfig, dtype: str, device: torch.device
) -> PreTrainedModel:
    """The model in `directory`, ready to compute on `device`."""
    _weight_files(directory)  # its messages say more than the library's
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model = model.to(device).eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EngineError(
            f"{directory}: the weights do not fit on {device} ({_first_line(error)}); "
            "use a smaller model or POC_DTYPE=bfloat16"
        ) from None
    except Exception as error:  # safetensors, shapes, disk: no common parent
        raise EngineError(
            f"{directory}: the weights can't be loaded ({_first_line(error)}); "
            "download or make the model again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # The library fills them with fresh random numbers: distances, but of no model.
        raise EngineError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]} the first; "
            "download or make the model again"
        )
    loaded: PreTrainedModel = model
    return loaded


def _choose_device(device: str) -> torch.device:
    """The device that `device` names; auto never picks mps, whose numbers nobody has checked."""
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
        "quantisation": "none",
    }


def _out_of_memory(tile: int, seq_len: int, error: BaseException) -> EngineError:
    return EngineError(
        f"out of memory with {tile} sequences of {seq_len} positions in one forward "
        f"({_first_line(error)}); lower POC_TILE on every worker, or seq_len"
    )


def _first_line(error: BaseException) -> str:
    """An exception as part of a sentence."""
    lines: list[Any] = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
