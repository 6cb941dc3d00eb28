"""What a checkpoint's safetensors hold, by their headers: which tensors, of which type, where.

Libraries pass over a tensor that they have no place for, and take numbers of a type that nobody
explains as they are. Then a model computes, and it is none. So all that is in the files must have
a meaning, and one that every engine agrees on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import EngineError
from worker.engines.checkpoint import first_line

#: Tensors that older exporters wrote, and that every library computes anew.
DEAD = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids)$")

#: Types whose numbers are weights as they stand.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
#: The longest header that is read; that of a model with 100,000 tensors has about 15 MB.
_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: its type as safetensors name it, its shape, and its bytes' place."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read(files: Iterable[Path]) -> dict[str, Entry]:
    """The tensors of `files` by name, but the dead ones.

    Raises `EngineError` for a header that can't be read, and for a name that comes twice: which of
    the two counts is up to the library.
    """
    found: dict[str, Entry] = {}
    for file in files:
        for name, entry in _header(file).items():
            if name in found:
                raise EngineError(
                    f"{file}: holds {name}, which {found[name].file.name} holds as well; download "
                    "the model again"
                )
            if not DEAD.search(name):
                found[name] = entry
    return found


def _header(file: Path) -> dict[str, Entry]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        found = {
            name: Entry(
                file,
                entry["dtype"],
                tuple(entry["shape"]),
                *(8 + length + offset for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        if max((entry.end for entry in found.values()), default=0) > file.stat().st_size:
            raise ValueError("it ends in the middle of a tensor")
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{file}: is no safetensors file ({first_line(error)}); download the model again"
        ) from None


def check_types(directory: Path, tensors: Mapping[str, Entry]) -> None:
    """Raise `EngineError` for numbers that only a quantization gives a meaning to.

    For a checkpoint without one: its scales may lie beside the weights, and nobody would use them.
    """
    odd = {name: entry for name, entry in tensors.items() if entry.dtype not in _PLAIN}
    if odd:
        name, entry = min(odd.items())
        raise EngineError(
            f"{directory}: {len(odd)} of its weights are quantized, {name} ({entry.dtype}) the "
            "first, and no config says how; add the quantization_config that its exporter made, or "
            "use full weights"
        )


def check_scales(directory: Path, tensors: Mapping[str, Entry]) -> None:
    """Raise `EngineError` for weights in float8 without a scale: vLLM would make one up."""
    bare = sorted(
        name
        for name, entry in tensors.items()
        if _is_float8(entry)
        and name.endswith(".weight")
        and not {f"{name}_scale_inv", f"{name}_scale"} & tensors.keys()
    )
    if bare:
        raise EngineError(
            f"{directory}: {len(bare)} of its weights are in float8 and have no scale, {bare[0]} "
            "the first; download or make the model again"
        )


def check_float8(directory: Path, tensors: Mapping[str, Entry], layers: Iterable[str]) -> None:
    """Raise `EngineError` for one of `layers`, by `common_name`, whose weights are not in float8.

    vLLM, which takes `layers` for float8, would load any weights, with any number in place of their
    scales.
    """
    small: dict[str, bool] = {}
    for name, entry in tensors.items():
        if name.endswith(".weight"):
            layer = common_name(name.removesuffix(".weight"))
            small[layer] = small.get(layer, True) and _is_float8(entry)
    if wrong := next((layer for layer in layers if not small.get(layer)), None):
        raise EngineError(
            f"{directory}: its config says that the weights of {wrong} are in float8, and in the "
            "files they are not: name the layer in modules_to_not_convert of quantization_config, "
            "or make the checkpoint again"
        )


def common_name(module: str) -> str:
    """The name of a module; of an expert, and of what is in it, that of all experts beside it."""
    stem, experts, _ = module.partition(".experts")
    return stem + experts


def _is_float8(entry: Entry) -> bool:
    return entry.dtype.startswith("F8_")


def check_names(directory: Path, tensors: Iterable[str]) -> None:
    """Raise `EngineError` for names that some libraries complete, and others don't know.

    Both forms of a name may be there, and then one of the two tensors would count.
    """
    odd = sorted(name for name in tensors if not name.startswith(("model.", "lm_head.")))
    if odd:
        raise EngineError(
            f"{directory}: {len(odd)} of its tensors have no place in the model of its "
            f"config.json, since their names begin neither with model. nor with lm_head.: "
            f"{', '.join(odd[:3])}{', ...' if odd[3:] else ''}. Save the checkpoint as a causal "
            "language model"
        )


def check_tied(directory: Path, tensors: Mapping[str, Entry], *, tied: bool) -> None:
    """Raise `EngineError` for a head of its own in a model whose head is its embedding.

    One library takes the file's, another the embedding. Equal ones are the same model.
    """
    head = tensors.get("lm_head.weight")
    embedding = tensors.get("model.embed_tokens.weight")
    if tied and head and embedding and not _equal(head, embedding):
        raise EngineError(
            f"{directory}: its config ties the head to the embedding (tie_word_embeddings), and "
            "its lm_head.weight is another one; set tie_word_embeddings to false in config.json if "
            "the head is meant, or take the tensor out"
        )


def _equal(one: Entry, other: Entry) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.end - one.start
        while left > 0:
            size = min(left, _CHUNK_BYTES)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def check_used(directory: Path, unused: Iterable[str]) -> None:
    """Raise `EngineError` for tensors that the model of the config has no place for."""
    names = sorted(name for name in unused if not DEAD.search(name))
    if names:
        shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
        raise EngineError(
            f"{directory}: {len(names)} of its tensors have no place in the model of its "
            f"config.json: {shown}; it would be another model without them. Use the config that "
            "belongs to these weights"
        )
