"""The chart in deploy/helm: its values, and what it renders where there is a helm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from shared.settings import Settings, load_settings
from support import ROOT
from worker.node.watchdog import GRACE_S

CHART = ROOT / "deploy/helm/poc-worker"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SECRET = "0123456789abcdef"
#: What somebody has to say at least.
LEAST = {"model": "m", "secrets": {"apiTokens": SECRET}, "valkey": {"password": SECRET}}
#: Settings that the chart gives from other values, from the pod or from files.
GIVEN = {"namespace", "model", "worker_name", "gpu", "api_host", "api_port", "tensor_parallel"}
GIVEN |= {"run_callbacks", "redis_url", "api_tokens", "callback_secret"}
GIVEN |= {"gateway_host", "gateway_port", "gateway_tokens"}
# Receipts are made where the operator is.
GIVEN |= {"receipt_key"}
# Those who only read have the status API.
GIVEN |= {"gateway_read_tokens"}
# It mounts no certificates.
GIVEN |= {name for name in Settings.model_fields if "_tls_" in name}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm lays a user's values over the chart's."""
    both = {
        k: merged(base[k], v) if isinstance(base.get(k), dict) and isinstance(v, dict) else v
        for k, v in over.items()
    }
    return base | both


def values(**over: Any) -> dict[str, Any]:
    """The chart's values with the least that it asks for, and with these."""
    return merged(merged(DEFAULTS, LEAST), over)


def test_the_least_is_enough() -> None:
    """And less is not: there is no default for a model, nor for a password."""
    assert jsonschema_rs.is_valid(SCHEMA, values())
    assert not jsonschema_rs.is_valid(SCHEMA, values(model=""))
    assert not jsonschema_rs.is_valid(SCHEMA, values(valkey={"password": ""}))
    own = {"valkey": {"enabled": False, "password": ""}, "secrets": {"existing": "mine"}}
    assert jsonschema_rs.is_valid(SCHEMA, values(**own))


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": {"replicas": 2}},
        {"worker": {"replica": 2}},
        {"worker": {"gpus": -1}},
        {"namespace": "a:b"},
        {"settings": {"POC_TILES": 32}},
        {"settings": {"POC_REDIS_URL": "redis://h"}},
        {"secrets": {"redisUrl": "http://h"}},
        {"valkey": {"password": "with a / in a URL"}},
        {"keda": {"address": "redis://h:1"}},
    ],
    ids=json.dumps,
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    """Before anything is installed."""
    assert not jsonschema_rs.is_valid(SCHEMA, values(**wrong))


def test_it_takes_every_setting_that_has_no_value_of_its_own() -> None:
    """After a change of the settings: change `settings` in values.schema.json."""
    taken = SCHEMA["properties"]["settings"]["propertyNames"]["enum"]
    assert taken == sorted(f"POC_{name.upper()}" for name in Settings.model_fields.keys() - GIVEN)


def render(directory: Path, **over: Any) -> dict[tuple[str, str], Any]:
    """What Helm makes of these values: objects by kind, and by name without the release's."""
    if (helm := shutil.which("helm")) is None:
        pytest.skip("helm is not installed")
    file = directory / "values.yaml"
    file.write_text(yaml.safe_dump(merged(LEAST, over)))
    done = subprocess.run(
        [helm, "template", "test-release", CHART, "--values", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {
        (each["kind"], each["metadata"]["name"].removeprefix("test-release-")): each
        for each in made
    }


def container(workload: dict[str, Any]) -> dict[str, Any]:
    """The only one of a workload's pods."""
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(only)


def environment(workload: dict[str, Any]) -> dict[str, str]:
    """What its process is told, with the pod's name for what comes from the pod."""
    return {each["name"]: each.get("value", "a-pod") for each in container(workload)["env"]}


def test_a_node_as_it_comes(tmp_path: Path) -> None:
    """Given the least, then a worker with a GPU, the API with its probes, and a Valkey."""
    made = render(tmp_path)
    assert made.keys() == {
        ("StatefulSet", "worker"),
        ("Deployment", "api"),
        ("Service", "api"),
        ("Secret", "secrets"),
        *((kind, "valkey") for kind in ("Secret", "Service", "StatefulSet")),
    }
    worker, api = made["StatefulSet", "worker"], made["Deployment", "api"]
    assert container(worker)["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert worker["spec"]["replicas"] == 1
    pod = worker["spec"]["template"]["spec"]
    batch_s = load_settings({}).batch_deadline
    assert pod["terminationGracePeriodSeconds"] >= batch_s + GRACE_S
    assert container(api)["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container(api)["readinessProbe"]["httpGet"]["path"] == "/readyz"
    url = made["Secret", "secrets"]["stringData"]["redis_url"]
    assert url == f"redis://:{SECRET}@test-release-valkey:6379/0"


def test_a_gateway_if_that_is_asked_for(tmp_path: Path) -> None:
    """It has the tokens of those who may command, and answers without a worker."""
    made = render(tmp_path, gateway={"enabled": True}, secrets={"gatewayTokens": SECRET})
    gateway = container(made["Deployment", "gateway"])
    told = environment(made["Deployment", "gateway"])
    assert gateway["args"] == ["gateway"]
    assert told["POC_GATEWAY_TOKENS_FILE"] == "/run/secrets/poc/gateway_tokens"
    assert SECRET not in json.dumps(made["Deployment", "gateway"])
    assert made["Secret", "secrets"]["stringData"]["gateway_tokens"] == SECRET
    assert (told["POC_GATEWAY_HOST"], told["POC_GATEWAY_PORT"]) == ("0.0.0.0", "8100")
    assert gateway["ports"] == [{"name": "http", "containerPort": 8100}]
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/livez"
    labels = made["Deployment", "gateway"]["spec"]["template"]["metadata"]["labels"]
    assert made["Service", "gateway"]["spec"]["selector"].items() <= labels.items()


def test_each_process_is_told_settings_that_there_are(tmp_path: Path) -> None:
    """A setting of the values reaches all of them; secrets are files, each for who needs it."""
    made = render(
        tmp_path,
        settings={"POC_TILE": 32, "POC_LOG_LEVEL": "debug"},
        worker={"gpus": 2},
        callbacks={"enabled": True, "signed": True},
        secrets={"callbackSecret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"},
    )
    files = {}
    for kind, name in (
        ("StatefulSet", "worker"),
        ("Deployment", "api"),
        ("Deployment", "callbacks"),
    ):
        told = environment(made[kind, name])
        files[name] = {each for each in told if each.endswith("_FILE")}
        settings = load_settings({k: v for k, v in told.items() if not k.endswith("_FILE")})
        assert (settings.tile, settings.log_level) == (32, "DEBUG")
        assert container(made[kind, name])["args"] == [name]
        assert SECRET not in json.dumps(made[kind, name])
    assert files == {
        "worker": {"POC_REDIS_URL_FILE"},
        "api": {"POC_REDIS_URL_FILE", "POC_API_TOKENS_FILE"},
        "callbacks": {"POC_REDIS_URL_FILE", "POC_CALLBACK_SECRET_FILE"},
    }
    worker = environment(made["StatefulSet", "worker"])
    assert (worker["POC_TENSOR_PARALLEL"], worker["POC_RUN_CALLBACKS"]) == ("2", "false")


def test_no_process_has_a_privilege(tmp_path: Path) -> None:
    """A normal user, who writes to volumes only."""
    secrets = {"gatewayTokens": SECRET}
    made = render(tmp_path, callbacks={"enabled": True}, gateway={"enabled": True}, secrets=secrets)
    workloads = [each for (kind, _), each in made.items() if kind in ("StatefulSet", "Deployment")]
    assert len(workloads) == 5
    for each in workloads:
        pod, confined = each["spec"]["template"]["spec"], container(each)["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}


def test_keda_counts_what_waits_in_the_queue(tmp_path: Path) -> None:
    """Given it, then the number of workers is KEDA's alone."""
    made = render(tmp_path, namespace="node-7", keda={"enabled": True})
    scaled = made["ScaledObject", "worker"]["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["listName"] == load_settings({}, namespace="node-7").queue
    assert trigger["metadata"]["address"] == "test-release-valkey:6379"
    target = scaled["scaleTargetRef"]
    worker = made[target["kind"], target["name"].removeprefix("test-release-")]
    assert "replicas" not in worker["spec"]
    (reference,) = made["TriggerAuthentication", "queue"]["spec"]["secretTargetRef"]
    assert made["Secret", "valkey"]["stringData"][reference["key"]] == SECRET
