"""What docker-compose.yml starts, as Compose itself reads it; no container is started."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from shared.settings import Settings, load_settings
from support import ROOT, clean_environment, free_port, running
from worker.tools.embedded import server_binary

pytestmark = pytest.mark.functional

REDIS_USERS = ("admin", "worker", "controller", "api", "flower")
#: What the file asks its user for.
NEEDED = {
    "POC_MODEL": "/models/model",
    "POC_FLOWER_PASSWORD": "for-flower",
    "POC_GRAFANA_PASSWORD": "for-grafana",
    "POC_API_TOKENS": "a-token-of-some-length",
    "POC_GATEWAY_TOKENS": "another-token-of-some-length",
    **{f"POC_REDIS_{user.upper()}_PASSWORD": f"for-{user}" for user in REDIS_USERS},
}
WORKERS = {"worker-gpu0": "0", "worker-gpu1": "1"}
#: What comes only with a profile.
PROFILES = {
    "prometheus": "monitoring",
    "grafana": "monitoring",
    "gateway": "network",
    "proxy": "network",
}


def compose(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `docker compose` on the file with these POC_ variables and no others."""
    env = clean_environment() | variables
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
    profiles = [word for each in {*PROFILES.values()} for word in ("--profile", each)]
    done = compose(*profiles, "config", "--format", "json", **NEEDED)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_a_whole_node(services: dict[str, Any]) -> None:
    """Redis, a worker for each GPU, the API and Flower, which all wait for Redis.

    On request Prometheus and Grafana, and the gateway behind its proxy, too.
    """
    assert set(services) == {"redis", *WORKERS, "api", "flower", *PROFILES}
    for name, service in services.items():
        assert service.get("profiles", []) == ([PROFILES[name]] if name in PROFILES else [])
        if name in {*WORKERS, "api", "flower", "gateway"}:
            assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_ports_are_open_on_this_machine_only(services: dict[str, Any]) -> None:
    """What goes over them is not encrypted."""
    ports = {
        name: [(port["host_ip"], port["published"], port["target"]) for port in service["ports"]]
        for name, service in services.items()
        if service.get("ports")
    }
    assert ports == {
        "redis": [("127.0.0.1", "6379", 6379)],
        "api": [("127.0.0.1", "8080", 8080)],
        "flower": [("127.0.0.1", "5555", 5555)],
        "proxy": [("127.0.0.1", "8200", 8200)],
        "prometheus": [("127.0.0.1", "9090", 9090)],
        "grafana": [("127.0.0.1", "3000", 3000)],
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


@pytest.mark.parametrize("name", [*WORKERS, "api", "gateway"])
def test_every_setting_is_handed_on_and_secrets_are_kept_apart(name: str) -> None:
    """After a change of the settings: change `x-settings`. Needs no Docker."""
    file = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    given = {key for key in file["services"][name]["environment"] if key.startswith("POC_")}
    tokens = {"api": {"api_tokens"}, "gateway": {"gateway_tokens", "gateway_read_tokens"}}
    own = {"redis_url"} | tokens.get(name, {"callback_secret"})
    # Receipts are made where the operator is.
    secrets = {"redis_url", "api_tokens", "callback_secret", "receipt_key"}
    secrets |= {"gateway_tokens", "gateway_read_tokens"}
    handed_on = Settings.model_fields.keys() - secrets | own
    assert given == {f"POC_{field.upper()}" for field in handed_on}


@pytest.mark.parametrize("name", [*WORKERS, "api", "gateway"])
def test_settings_are_ones_that_there_are(name: str, services: dict[str, Any]) -> None:
    """An unknown one would end the process; all are of one namespace, each with its user."""
    given = {k: v for k, v in services[name]["environment"].items() if v is not None}
    settings = load_settings(given)
    user = {"api": "api", "gateway": "controller"}.get(name, "worker")
    assert settings.redis_url == f"redis://{user}:for-{user}@redis:6379/0"
    assert settings.namespace == "default"
    if name in WORKERS:
        assert settings.model == NEEDED["POC_MODEL"]
        assert services[name]["command"] == ["worker"]
    else:
        assert getattr(settings, f"{name}_tokens")
        assert not getattr(settings, f"{name}_public")


def test_nothing_may_be_written_and_nothing_gained(services: dict[str, Any]) -> None:
    """A normal user without privileges, who writes to volumes and to memory only."""
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        # Without it the proxy's binary would not start; it gains nothing by it either.
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "proxy" else []), name
        assert int(service["user"].split(":")[0]) > 0, name
        assert "/var/run/docker.sock" not in json.dumps(service), name
        written = {
            each["target"] for each in service.get("volumes", []) if not each.get("read_only")
        }
        assert written <= {"/models", "/data", "/prometheus", "/var/lib/grafana"}, name
        assert {each.split(":")[0] for each in service["tmpfs"]} <= {"/tmp", "/home/poc", "/run"}


def test_no_secret_is_on_a_command_line(services: dict[str, Any]) -> None:
    """Everybody on the machine can read those."""
    secrets = set(NEEDED.values()) - {NEEDED["POC_MODEL"]}
    for name, service in services.items():
        words = [service.get("entrypoint"), service.get("command"), service.get("healthcheck")]
        assert not [secret for secret in secrets if secret in json.dumps(words)], name


def test_redis_starts_with_its_users(services: dict[str, Any], tmp_path: Path) -> None:
    """What the container runs, run here: strangers are turned away, and each user may come in."""
    redis_service = services["redis"]
    (tmp_path / "valkey-server").symlink_to(server_binary())
    port = free_port()
    words = [*redis_service["entrypoint"], *redis_service["command"], "--port", str(port)]
    # As Compose hands it on: it has doubled what is not its own.
    words = [
        word.replace("$$", "$")
        .replace(" /users.acl.sh", f" {ROOT}/deploy/users.acl.sh")
        .replace("/run/", f"{tmp_path}/")
        for word in words
    ]
    env = {**redis_service["environment"], "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with running(words, "Ready to accept", tmp_path / "server.log", env=env, cwd=tmp_path):
        for user in REDIS_USERS:
            with redis.Redis(port=port, username=user, password=f"for-{user}") as client:
                assert client.ping()
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"PING\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH")


def test_redis_loses_no_round(services: dict[str, Any]) -> None:
    """It logs every write to a volume, and evicts nothing."""
    words = services["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    volumes = {(each["type"], each["target"]) for each in services["redis"]["volumes"]}
    assert ("volume", "/data") in volumes
    assert services["redis"]["working_dir"] == "/data"


@pytest.mark.usefixtures("_has_compose")
def test_a_setting_of_the_shell_reaches_the_worker() -> None:
    """And what is set nowhere is set nowhere inside either."""
    done = compose("config", "--format", "json", **NEEDED, POC_TILE="7")
    environment = json.loads(done.stdout)["services"]["worker-gpu0"]["environment"]
    assert (environment["POC_TILE"], environment.get("POC_DTYPE")) == ("7", None)


def test_flower_asks_for_a_password(services: dict[str, Any]) -> None:
    environment = services["flower"]["environment"]
    assert environment["FLOWER_BASIC_AUTH"] == "poc:for-flower"
    assert environment["CELERY_BROKER_URL"] == "redis://flower:for-flower@redis:6379/0"


@pytest.mark.skipif(not shutil.which("caddy"), reason="caddy is not installed")
def test_the_proxy_knows_the_others() -> None:
    """What Caddy makes of its variables: the gateway and each worker by its name. Needs no Docker.

    All listen on the port that they are asked for at.
    """
    file = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    given = file["services"]["proxy"]["environment"]
    default = re.sub(r"\$\{\w+:-(.*)\}", r"\1", given["PROXY_WORKERS"])
    done = subprocess.run(
        ["caddy", "adapt", "--config", ROOT / "deploy/Caddyfile"],
        env={"PATH": os.environ["PATH"]} | given | {"PROXY_WORKERS": default},
        capture_output=True,
        text=True,
        check=True,
    )
    asked = set(re.findall(r'"dial":"([^"]+)"', done.stdout))
    assert asked == {"gateway:8100", *(f"{name}:8000" for name in WORKERS)}
    assert file["services"]["gateway"]["environment"]["POC_GATEWAY_PORT"] == "8100"
    assert '"listen":["0.0.0.0:8200"]' in done.stdout


def test_prometheus_has_one_token_in_memory(tmp_path: Path) -> None:
    """What the container runs first, run here, given two tokens: the first, for its owner's eyes.

    It is where the scrape config looks for it. Needs no Docker.
    """
    file = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    service = file["services"]["prometheus"]
    server = tmp_path / "prometheus"
    server.write_text('#!/bin/sh\necho "$@"\n')
    server.chmod(0o755)
    words = [
        word.replace("$$", "$").replace("/run/", f"{tmp_path}/")
        for word in [*service["entrypoint"], *service["command"]]
    ]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "POC_API_TOKENS": "first,second"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert "--config.file=/etc/prometheus/prometheus.yml" in done.stdout
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    token = Path(config["scrape_configs"][0]["authorization"]["credentials_file"])
    assert token.parent == Path("/run")
    assert (tmp_path / token.name).read_text() == "first"
    assert service["tmpfs"] == ["/run:uid=65534,gid=65534,mode=0700"]


@pytest.mark.usefixtures("_has_compose")
@pytest.mark.parametrize("missing", NEEDED)
def test_what_is_needed_is_asked_for(missing: str) -> None:
    """By name, before anything is started."""
    done = compose("config", **{k: v for k, v in NEEDED.items() if k != missing})
    assert done.returncode != 0
    assert missing in done.stderr
