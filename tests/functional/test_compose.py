"""What docker-compose.yml starts, as Compose itself reads it; no container is started."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.settings import load_settings

pytestmark = pytest.mark.functional

ROOT = Path(__file__).parents[2]
#: What the file asks its user for.
NEEDED = {"POC_MODEL": "/models/model", "POC_FLOWER_PASSWORD": "secret"}
WORKERS = {"worker-gpu0": "0", "worker-gpu1": "1"}


def compose(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `docker compose` on the file with these POC_ variables and no others."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("POC_")} | variables
    command = ["docker", "compose", "--env-file", os.devnull, "-f", "docker-compose.yml", *words]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def _has_compose() -> None:
    try:
        done = subprocess.run(
            ["docker", "compose", "version"], capture_output=True, timeout=60, check=False
        )
    except FileNotFoundError:
        pytest.skip("docker is not installed")
    if done.returncode:
        pytest.skip("docker has no compose plugin")


@pytest.fixture(scope="module")
def services(_has_compose: None) -> dict[str, Any]:
    """Every service, with what the file leaves to defaults filled in."""
    done = compose("config", "--format", "json", **NEEDED)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_a_whole_node(services: dict[str, Any]) -> None:
    """Redis, a worker for each GPU, the API and Flower, which all wait for Redis."""
    assert set(services) == {"redis", *WORKERS, "api", "flower"}
    for name, service in services.items():
        if name != "redis":
            assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_ports_are_open_on_this_machine_only(services: dict[str, Any]) -> None:
    """Redis has no password, and Flower's page can stop rounds."""
    ports = {
        name: [(port["host_ip"], port["published"], port["target"]) for port in service["ports"]]
        for name, service in services.items()
        if service.get("ports")
    }
    assert ports == {
        "redis": [("127.0.0.1", "6379", 6379)],
        "api": [("127.0.0.1", "8080", 8080)],
        "flower": [("127.0.0.1", "5555", 5555)],
    }


def test_each_worker_has_a_gpu_of_its_own(services: dict[str, Any]) -> None:
    """Which is number 0 in its container; nothing else reserves one."""
    for name, service in services.items():
        if name not in WORKERS:
            assert "devices" not in service.get("deploy", {}).get("resources", {}).get(
                "reservations", {}
            )
            continue
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert device["device_ids"] == [WORKERS[name]]
        assert service["environment"]["POC_GPU"] == "0"


def test_workers_don_t_share_a_name(services: dict[str, Any]) -> None:
    """Claims are held under it."""
    names = {services[name]["environment"]["POC_WORKER_NAME"] for name in WORKERS}
    assert len(names) == len(WORKERS)


@pytest.mark.parametrize("name", [*WORKERS, "api"])
def test_settings_are_ones_that_there_are(name: str, services: dict[str, Any]) -> None:
    """An unknown one would end the process; all processes are of one namespace and one Redis."""
    settings = load_settings(services[name]["environment"])
    assert (settings.redis_url, settings.namespace) == ("redis://redis:6379/0", "default")
    if name in WORKERS:
        assert settings.model == NEEDED["POC_MODEL"]
        assert services[name]["command"] == ["worker"]


def test_redis_loses_no_round(services: dict[str, Any]) -> None:
    """It logs every write to a volume, and evicts nothing."""
    words = services["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    (volume,) = services["redis"]["volumes"]
    assert (volume["type"], volume["target"]) == ("volume", "/data")


def test_flower_has_the_password(services: dict[str, Any]) -> None:
    assert services["flower"]["command"] == ["--basic-auth=poc:secret"]


@pytest.mark.usefixtures("_has_compose")
@pytest.mark.parametrize("missing", NEEDED)
def test_what_is_needed_is_asked_for(missing: str) -> None:
    """By name, before anything is started."""
    done = compose("config", **{k: v for k, v in NEEDED.items() if k != missing})
    assert done.returncode != 0
    assert missing in done.stderr
