"""What a node says of itself, and what it refuses because it has something else deployed."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest

from calls import JOB, POW, ROUND, Gateway

pytestmark = pytest.mark.usefixtures("worker")


def test_the_model_has_its_name_on_the_network(gateway: Gateway) -> None:
    assert gateway().get("/v1/models").json()["data"][0]["id"] == "/models/m"
    client = gateway(gateway_model="Qwen/Qwen3-8B")
    assert client.get("/v1/models").json()["data"][0]["id"] == "Qwen/Qwen3-8B"
    assert client.get("/api/v1/state").json()["loaded_model"] == "Qwen/Qwen3-8B"


def test_it_says_what_it_is(gateway: Gateway) -> None:
    state = gateway().get("/api/v1/state").json()
    assert (state["state"], state["poc_status"], state["inference_healthy"]) == (
        "INFERENCE",
        "IDLE",
        True,
    )
    assert "vllm_version" in gateway().get(f"{POW}/versions").json()


@pytest.mark.parametrize("path", ["init/generate", "generate"])
@pytest.mark.parametrize(
    "params", [{"model": "other", "seq_len": 256}, {"model": "/models/m", "seq_len": 2049}]
)
def test_what_is_not_deployed_is_refused_with_what_is(
    gateway: Gateway, path: str, params: dict[str, Any]
) -> None:
    answer = gateway().post(f"{POW}/{path}", json=JOB | {"params": params})
    assert answer.status_code == 409
    assert answer.json()["requested"] == params
    assert answer.json()["deployed"]["model"] == "/models/m"
    assert answer.json()["deployed"]["seq_len"] in (256, 2048)


def test_a_seq_len_can_be_pinned(gateway: Gateway) -> None:
    answer = gateway(gateway_seq_len=1024).post(f"{POW}/init/generate", json=ROUND)
    assert answer.status_code == 409
    assert answer.json()["deployed"]["seq_len"] == 1024


def test_a_receiver_that_is_not_allowed_is_refused(gateway: Gateway) -> None:
    for url in ("http://169.254.169.254/latest", "http://10.0.0.1/"):
        client = gateway(callback_allow="receiver.example")
        answer = client.post(f"{POW}/init/generate", json=ROUND | {"url": url})
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("url: ")


def test_without_redis_it_says_so_and_chat_goes_on(
    gateway: Gateway, server: fakeredis.FakeServer
) -> None:
    client = gateway(gate_chat=True)
    server.connected = False
    for answer in (
        client.get(f"{POW}/status"),
        client.get("/health"),
        client.post(f"{POW}/init/generate", json=ROUND),
        client.post(f"{POW}/generate", json=JOB),
    ):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert client.get("/api/v1/gate").status_code == 200
    assert client.get("/livez").status_code == 200
