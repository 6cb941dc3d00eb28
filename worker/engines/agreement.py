"""Whether all engines read a config.json in the same way.

Each library takes what it knows from a config and passes over the rest, and they know different
things. A key that one of them obeys and another does not gives two models one name, both of which
load. So what only some obey must say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

#: RoPE whose meaning all engines agree on, with the parameters that they all read. Others depend
#: on the engine: what is dynamic, and long factors beyond the original length.
_ROPE = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        }
    ),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"}),
    "longrope": frozenset({"short_factor", "long_factor", "original_max_position_embeddings"}),
}

_DTYPES = frozenset({"float32", "bfloat16", "float16"})

_QWEN3 = frozenset({"qwen3", "qwen3_moe"})
_GEMMA = frozenset({"gemma2", "gemma3_text"})


def _nothing(value: Any) -> bool:
    return not value


def _whole(value: Any) -> bool:
    return value in (None, 1)


#: Keys that one engine obeys in models of any type, with the types whose model has such a thing,
#: and the test that the value must pass in all others.
_KEYS: Mapping[str, tuple[Collection[str], Callable[[Any], bool]]] = {
    "sliding_window": ({"mistral", "phi3", "qwen2", *_QWEN3, *_GEMMA}, _nothing),
    "layer_types": ({"qwen2", *_QWEN3, *_GEMMA}, _nothing),
    "partial_rotary_factor": ({"phi3"}, _whole),
    "rotary_pct": ((), _whole),
    "rotary_emb_fraction": ((), _whole),
    "attention_bias": ({"llama", *_QWEN3, *_GEMMA}, _nothing),
    "mlp_bias": ({"llama"}, _nothing),
    "bias": ((), _nothing),
    "qkv_bias": ((), _nothing),
    "qk_norm": (_QWEN3, _nothing),
    "llama_4_scaling": ((), _nothing),
    "ada_rms_norm_t_cond": ((), _nothing),
    "target_layer_count": ((), _nothing),
    "is_causal": ((), lambda value: value in (None, True)),
    # A distance does not depend on how long the logits are.
    "logit_scale": ((), lambda value: value is None or value > 0),
    "use_bidirectional_attention": ((), _nothing),
    # A draft model beside another, attention that only one engine knows.
    "speculators_config": ((), _nothing),
    "dual_chunk_attention_config": ((), _nothing),
    "sparse_attention_config": ((), _nothing),
}


def refusal(config: Any, raw: Mapping[str, Any]) -> str | None:
    """Why engines would compute different models of `config`, if so; `raw` is what its file says.

    For a `PretrainedConfig` of a type that is supported.
    """
    return (
        _refusal_of_class(config)
        or _refusal_of_keys(config.model_type, raw)
        or _refusal_of_windows(config, raw)
        or _refusal_of_all_rope(config)
    )


def _refusal_of_class(config: Any) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    classes = config.architectures
    if not (isinstance(classes, list) and all(isinstance(each, str) for each in classes)):
        classes = [str(classes)] if classes else []
    if not any(name.endswith("ForCausalLM") for name in classes):
        return (
            f"holds {', '.join(classes) or 'no named class'}, which has no logits head; "
            "use a checkpoint of a causal language model (...ForCausalLM)"
        )
    # One engine goes by the type, another by the class.
    own = NAMES[config.model_type]
    if others := [each for each in classes if each.endswith("ForCausalLM") and each != own]:
        return (
            f"is of the type {config.model_type!r} and of the class {', '.join(others)}, which "
            f"are two models; the class of that type is {own}"
        )
    return None


def _refusal_of_keys(model_type: str, raw: Mapping[str, Any]) -> str | None:
    for key, (types, says_nothing) in _KEYS.items():
        value = raw.get(key)
        try:
            fits = model_type in types or says_nothing(value)
        except TypeError:
            fits = False
        if not fits:
            return (
                f"has {key} {value!r} in its config.json, which engines don't agree on in a model "
                f"of the type {model_type!r}; take it out if the model does without"
            )
    return None


def _refusal_of_windows(config: Any, raw: Mapping[str, Any]) -> str | None:
    kinds = set(getattr(config, "layer_types", None) or ())
    if odd := sorted(map(str, kinds - {"full_attention", "sliding_attention"})):
        return f"has layers of the type {', '.join(odd)}, which engines don't agree on"
    if len(kinds) > 1 and config.model_type not in _GEMMA:
        return (
            "has a sliding window in some of its layers, which one engine alone computes; "
            "use a model with a window in all or in none"
        )
    window = raw.get("sliding_window", getattr(config, "sliding_window", None))
    if window is None and not (config.model_type in _GEMMA and "sliding_attention" in kinds):
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        return f"has a sliding_window of {window!r}; it must be 1 or more, or null for none"
    return None


def ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary positions of `config`: one, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in rope.values() if isinstance(each, dict)] or [rope]


def _refusal_of_all_rope(config: Any) -> str | None:
    refusals = (_refusal_of_rope(rope, config) for rope in ropes(config))
    return next((each for each in refusals if each), None)


def _refusal_of_rope(rope: dict[str, Any], config: Any) -> str | None:
    if "mrope_section" in rope:
        return "has multimodal rotary positions (mrope); use a text-only model"
    name = rope.get("rope_type") or rope.get("type") or "default"
    if name not in _ROPE:
        known = ", ".join(sorted(_ROPE))
        return f"has rotary positions of type {name!r}, which engines differ in; use {known}"
    usual = _ROPE[name] | {"rope_type", "type", "rope_theta"}
    odd = {key for key in rope.keys() - usual if rope[key] is not None}
    if config.model_type == "phi3" or rope.get("partial_rotary_factor") == 1:
        odd.discard("partial_rotary_factor")
    # One engine reckons with it, another with the lengths that it stands for.
    original = rope.get("original_max_position_embeddings")
    if (
        name == "longrope"
        and original
        and "factor" in odd
        and abs(rope["factor"] * original - config.max_position_embeddings) < 1
    ):
        odd.discard("factor")
    if odd:
        return f"has rotary positions with {', '.join(sorted(odd))}, which engines don't agree on"
    return None


def refusal_of_dtype(config: Any) -> str | None:
    """Why engines would compute with different numbers unless they are told, if so."""
    dtype = str(getattr(config, "dtype", None)).removeprefix("torch.")
    if dtype in _DTYPES:
        return None
    says = "no dtype" if dtype == "None" else f"the dtype {dtype}"
    return (
        f"its config.json has {says}, for which each engine takes its own; set POC_DTYPE to "
        "float32, bfloat16 or float16"
    )
