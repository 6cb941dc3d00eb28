"""Weights in float8, which mean nothing without a scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import EngineError
from worker.engines.tensors import Entry, check_float8, check_scales

LAYER = "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts"
EXPERT = f"{EXPERTS}.3.up_proj"


def entry(dtype: str) -> Entry:
    """The header of a tensor."""
    return Entry(Path("model.safetensors"), dtype, (2, 2), 0, 4)


EIGHT, WIDE, SCALE = entry("F8_E4M3"), entry("BF16"), entry("F32")


def named(**entries: Entry) -> dict[str, Entry]:
    """Those of `LAYER`."""
    return {f"{LAYER}.{name}": each for name, each in entries.items()}


@pytest.mark.parametrize(
    "scale", [{"weight_scale_inv": SCALE}, {"weight_scale": WIDE}], ids=["blocks", "whole"]
)
def test_weights_with_a_scale_are_taken(scale: dict[str, Entry]) -> None:
    check_scales(Path("m"), named(weight=EIGHT, **scale))


def test_weights_of_a_type_with_numbers_of_its_own_need_none() -> None:
    check_scales(Path("m"), named(weight=WIDE, bias=EIGHT))


@pytest.mark.parametrize("layer", [LAYER, EXPERT], ids=["a projection", "one of the experts"])
def test_weights_without_a_scale_are_refused(layer: str) -> None:
    """Else vLLM would make one up: the lowest number, 1, or that of another projection."""
    found = named(weight=EIGHT, weight_scale_inv=SCALE)
    found |= {"model.layers.1.mlp.up_proj.weight_scale_inv": SCALE, f"{layer}.weight": EIGHT}
    found.pop(f"{layer}.weight_scale_inv", None)
    with pytest.raises(EngineError, match=rf"m: 1 of its weights .* {layer}\.weight the first"):
        check_scales(Path("m"), found)


def test_layers_in_float8_are_taken() -> None:
    found = named(weight=EIGHT, bias=WIDE) | {f"{EXPERT}.weight": EIGHT}
    check_float8(Path("m"), found, [LAYER, EXPERTS])


@pytest.mark.parametrize("layer", [LAYER, EXPERT], ids=["a router", "one of the experts"])
def test_a_layer_that_only_the_config_calls_quantized_is_refused(layer: str) -> None:
    """What to do is said with its name."""
    found = named(weight=EIGHT) | {f"{EXPERTS}.0.up_proj.weight": EIGHT, f"{layer}.weight": WIDE}
    said = layer.partition(".3")[0]
    with pytest.raises(
        EngineError, match=rf"m: its config .* weights of {said} are .* modules_to_not_convert"
    ):
        check_float8(Path("m"), found, [LAYER, EXPERTS])


def test_a_layer_that_is_not_in_the_files_is_refused() -> None:
    with pytest.raises(EngineError, match="in the files they are not"):
        check_float8(Path("m"), {}, [LAYER])
