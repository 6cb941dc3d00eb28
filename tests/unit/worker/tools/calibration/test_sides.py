"""The other sides of a validation, as they are named on the command line."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from shared.settings import load_settings
from worker.engines import EngineInfo
from worker.tools.calibration.sides import ODD_BATCH, Side, usual

OURS = load_settings({}, model="m", engine="vllm", quantization="fp8", serve_port="8000")


def info(tile: int, **profile: str) -> EngineInfo:
    return EngineInfo("m", "cpu", "f", 16, 8, 64, profile, tile=tile)


def test_a_side_is_named_by_what_differs() -> None:
    side = Side.of("engine=transformers,dtype=float32,tile=16,batch_size=3")
    assert side.name == "engine=transformers,dtype=float32,tile=16"
    assert (side.batch_size, side.asked) == (3, True)
    assert Side.of("batch_size=3").name == "batch_size=3"
    assert Side.of("model=fake?noise=1").changes == {"model": "fake?noise=1"}


@pytest.mark.parametrize("text", ["", "dtype", "dtype=", "redis_url=x", "batch_size=0"])
def test_what_is_no_side_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--as "):
        Side.of(text)


def test_settings_are_ours_with_the_changes() -> None:
    """What only our own engine knows says nothing of another, and nobody serves requests."""
    theirs = Side.of("engine=transformers,dtype=float32").settings(OURS)
    assert (theirs.engine, theirs.model, theirs.dtype) == ("transformers", "m", "float32")
    assert theirs.model_fields_set == {"model", "engine", "dtype"}
    same_engine = Side.of("tile=16").settings(OURS)
    assert same_engine.quantization == "fp8"
    assert "serve_port" not in same_engine.model_fields_set


def test_a_setting_that_can_not_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="POC_TILE='x'"):
        Side.of("tile=x").settings(OURS)


def test_usual_sides_differ_in_batch_tile_engine_and_floats() -> None:
    """Given vLLM in bfloat16, then another tile, transformers, and float32."""
    found = usual(OURS, info(32, engine="vllm", dtype="bfloat16"))
    assert [each.name for each in found] == [
        f"batch_size={ODD_BATCH}",
        "tile=16",
        "engine=transformers",
        "engine=transformers,dtype=float32",
    ]
    assert not any(each.asked for each in found)


def test_a_node_in_float32_needs_no_wider_floats() -> None:
    """Given transformers on a machine without a GPU, then there is no other engine either."""
    settings = load_settings({}, model="m", device="cpu")
    found = usual(settings, info(1, engine="transformers", dtype="float32"))
    assert [each.name for each in found] == [f"batch_size={ODD_BATCH}", "tile=2"]


def test_of_an_engine_of_ones_own_only_the_batch_is_known() -> None:
    assert usual(OURS, info(32, engine="fake")) == [Side()]
