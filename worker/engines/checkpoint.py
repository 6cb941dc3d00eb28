"""A model's directory: where it is, whether an engine may compute it, and its fingerprint.

What both engines need to know before they load anything. Weights are hashed, never read into
tensors, and code that comes with a model is never run.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shared.errors import EngineError
from worker.engines import agreement

REMEDY = "set POC_MODEL to a model directory or hub id, or make one with `poc make-model`"

#: Dense architectures that are known to give the right numbers: each has a test that holds its
#: distances against an independent computation. Anything else is refused, not guessed at:
#: multimodal positions, recurrent state and per-layer embeddings need more than inputs_embeds.
DENSE = frozenset({"gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"})

#: The list of a model's shards, and which tensor is in which.
INDEX = "model.safetensors.index.json"

#: What quantizes a model from beside its config: read by vLLM, each by the methods that know it.
QUANTIZATIONS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")

#: Files by which a library would compute another model than the weights are.
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

#: Keys of a quantization_config by which a checkpoint asks for a quantized KV cache.
_QUANTIZED_CACHE = ("kv_cache_scheme", "kv_cache_quant_algo")

#: Keys of config.json that say where a model came from or how to run it, not what it computes.
_NOT_THE_MODEL = frozenset({"_name_or_path", "_commit_hash", "transformers_version", "use_cache"})

#: The files of a model on the hub that an engine needs, and those that serving it needs besides.
_MODEL_FILES = ("config.json", "model*.safetensors", INDEX, *QUANTIZATIONS)
_SERVING_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "*.jinja", "special_tokens_map.json"),
    "generation_config.json",  # tokens that end an answer, and how it is sampled
)


def names_a_path(model: str) -> bool:
    """Whether `model` can only be meant as a path: a hub id is `name` or `owner/name`."""
    path = Path(model).expanduser()
    return path.is_absolute() or model.startswith(".") or len(path.parts) > 2


def find(model: str | None, *, serving: bool = False) -> Path:
    """The local directory of `model`, fetched from the hub if it is no directory already.

    With `serving` its tokenizer is fetched, too. Raises `EngineError` if there is no such model.
    """
    if not model:
        raise EngineError(f"no model is configured; {REMEDY}")
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_file():
        raise EngineError(f"{model}: is a file; set POC_MODEL to the directory that it is in")
    if names_a_path(model):
        raise EngineError(f"{model}: there is no such directory; {REMEDY}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EngineError(
            f"{model}: there is no such directory, and without an engine's libraries the hub can't "
            f"be asked ({error}); pip install '.[cpu]' where poc-worker's source is, or set "
            "POC_MODEL to a model directory"
        ) from None
    try:
        patterns = [*_MODEL_FILES, *(_SERVING_FILES if serving else ())]
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the hub's errors have no common parent: network, 404, bad id
        raise EngineError(
            f"{model}: there is no such directory, and the hub did not give a model of that "
            f"name ({first_line(error)}); {REMEDY}"
        ) from error


def read_config(directory: Path, architectures: frozenset[str], *, quantized: bool) -> Any:
    """The `PretrainedConfig` in `directory`.

    Raises `EngineError` if there is none, or if it is of none of the `architectures` that an engine
    gives the right numbers for, or quantized where the engine can't be.
    """
    if not (directory / "config.json").is_file():
        raise EngineError(f"{directory}: has no config.json, so it is no model; {REMEDY}")
    from transformers import AutoConfig

    try:
        # Never run code that came with a model, nor ask on a terminal whether to.
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a broken or unknown config makes the library raise
        raise EngineError(
            f"{directory}: its config.json can't be used ({first_line(error)}); {REMEDY}"
        ) from error
    refusal = _refusal_of_files(directory) or _refusal(
        config,
        _read_json(directory / "config.json"),
        quantization_of(directory, config),
        architectures,
        quantized=quantized,
    )
    if refusal:
        raise EngineError(f"{directory}: {refusal}")
    return config


def quantization_of(directory: Path, config: Any) -> Any:
    """What says how the weights in `directory` are quantized; None for full weights."""
    for key in ("quantization_config", "compression_config"):
        if (found := getattr(config, key, None)) is not None:
            return found
    return next(iter(_quantizations(directory).values()), None)


def _quantizations(directory: Path) -> dict[str, Any]:
    """What each of the files beside the config says, by its name."""
    return {
        name: _read_json(directory / name) for name in QUANTIZATIONS if (directory / name).is_file()
    }


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{file}: can't be read ({first_line(error)}); download the model again"
        ) from None


def _refusal_of_files(directory: Path) -> str | None:
    """Why a library would compute another model than the weights are, if so."""
    if found := [name for name in _ADAPTERS if (directory / name).exists()]:
        return (
            f"holds an adapter ({', '.join(found)}), which is applied by some libraries and passed "
            "over by others; merge it into the weights, or move it away"
        )
    return None


def _refusal(
    config: Any,
    raw: dict[str, Any],
    quantization: Any,
    architectures: frozenset[str],
    *,
    quantized: bool,
) -> str | None:
    """Why an engine can't compute a model of this config with the right numbers, if so."""
    if config.model_type not in architectures:
        return (
            f"the architecture {config.model_type!r} is not supported; "
            f"use a model of one of {', '.join(sorted(architectures))}"
        )
    if quantization is not None and not quantized:
        return (
            "is quantized, which this engine is not tested with; use full weights, or "
            "POC_ENGINE=vllm, which takes some kinds"
        )
    if _asks_for_a_quantized_cache(quantization):
        return "asks for a quantized KV cache, which is not tested; use a checkpoint without one"
    return agreement.refusal(config, raw)


def _asks_for_a_quantized_cache(quantization: Any) -> bool:
    if not isinstance(quantization, dict):
        return False
    nested = quantization.get("quantization")  # as hf_quant_config.json has it
    return any(map(quantization.get, _QUANTIZED_CACHE)) or (
        isinstance(nested, dict) and any(map(nested.get, _QUANTIZED_CACHE))
    )


def dtype_of(directory: Path, config: Any, wanted: str) -> str:
    """The dtype to compute in: `wanted`, or for auto that of the config.

    Raises `EngineError` where the config has none that engines agree on.
    """
    if wanted != "auto":
        return wanted
    if refusal := agreement.refusal_of_dtype(config):
        raise EngineError(f"{directory}: {refusal}")
    return str(config.dtype).removeprefix("torch.")


def longest(config: Any) -> int:
    """The positions of a sequence for which all engines compute the same.

    Beyond its original length a model with longrope takes other factors: transformers for the
    sequence that is so long, vLLM for all as soon as one may be.
    """
    positions: int = config.max_position_embeddings
    name = "original_max_position_embeddings"
    for rope in agreement.ropes(config):
        if rope.get("rope_type") == "longrope":
            positions = min(positions, rope.get(name) or getattr(config, name, None) or positions)
    return positions


def weight_files(directory: Path) -> list[Path]:
    """The safetensors that loading reads, by name.

    Raises `EngineError` if some are missing, and where engines would not agree on which they are:
    the fingerprint must be of what is loaded.
    """
    index = directory / INDEX
    single = directory / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{index}: can't be read ({first_line(error)}); download the model again"
            ) from None
    elif single.is_file():
        names = [single.name]
    else:
        raise EngineError(
            f"{directory}: has no model.safetensors and no index of shards, so there are no "
            f"weights to load (only safetensors are read); {REMEDY}"
        )
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise EngineError(
            f"{directory}: lacks the weights {', '.join(missing)}; download the model again"
        )
    # With an index vLLM reads what it names, else all; transformers reads the single one first.
    others = [single] if index.is_file() else sorted(directory.glob("*.safetensors"))
    stray = [each.name for each in others if each.is_file() and each.name not in names]
    if stray:
        raise EngineError(
            f"{directory}: holds {', '.join(stray)} beside its weights, {', '.join(names[:3])}"
            f"{', ...' if names[3:] else ''}; move away what is not the model's"
        )
    return [directory / name for name in names]


def fingerprint(directory: Path) -> str:
    """Name the model in `directory`: a SHA-256 over its config and its safetensors, in hex.

    The config counts as its values, without paths and versions; the weights as their files'
    bytes, so the same tensors cut into other shards are another model. Files are streamed.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
    model |= _quantizations(directory)
    digest = hashlib.sha256(json.dumps(model, sort_keys=True, separators=(",", ":")).encode())
    files = weight_files(directory)
    with ThreadPoolExecutor(thread_name_prefix="poc-fingerprint") as pool:  # hashing frees the GIL
        for file, content in zip(files, pool.map(_file_digest, files), strict=True):
            digest.update(f"\n{file.name}:{content}".encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """An exception as part of a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
