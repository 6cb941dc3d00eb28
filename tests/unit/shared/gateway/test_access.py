"""Who may ask, how often, and how much."""

from __future__ import annotations

import pytest

from calls import JOB, POW, Gateway
from shared.errors import ConfigError
from shared.gateway import access, serve
from shared.settings import load_settings
from shared.wire import MAX_PROOF_NONCES
from support import wait_until

STATUS, STOP, GENERATE = (f"/api/v1/pow/{path}" for path in ("status", "stop", "generate"))
COMMANDS, READS = "commands-" + 16 * "c", "reads-" + 16 * "r"
TOKENS = {"gateway_tokens": COMMANDS, "gateway_read_tokens": READS}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("token", "read", "command"), [("", 401, 401), ("other", 401, 401), (READS, 200, 403)]
)
def test_commands_need_a_token_of_their_own(
    gateway: Gateway, token: str, read: int, command: int
) -> None:
    client = gateway(**TOKENS)
    assert client.get(STATUS, headers=bearer(token)).status_code == read
    refused = client.post(STOP, headers=bearer(token))
    assert refused.status_code == command
    assert "POC_GATEWAY_TOKENS" in refused.json()["detail"]


def test_who_may_command_may_read(gateway: Gateway) -> None:
    client = gateway(**TOKENS)
    assert client.get(STATUS, headers=bearer(COMMANDS)).status_code == 200
    stopped = client.post(STOP, headers=bearer(COMMANDS))
    assert stopped.json() == {"status": "OK", "message": "No backends to stop"}


def test_health_needs_no_token(gateway: Gateway, worker: None) -> None:
    client = gateway(**TOKENS)
    for path in ("/livez", "/readyz", "/health"):
        assert client.get(path).status_code == 200


def test_a_refusal_is_logged_with_who(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway(**TOKENS).post(STOP, headers=bearer("other"))
    assert "POST /api/v1/pow/stop of testclient: 401" in caplog.text
    assert "other" not in caplog.text


def test_a_refusal_is_one_line_whatever_the_path_says(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    client = gateway(**TOKENS)
    client.get("/api%0aPOST /stop of 10.0.0.1: 401")
    client.get("/" + 10_000 * "x")
    forged, long = (each.getMessage() for each in caplog.records if "testclient" in each.message)
    assert forged.startswith("GET /api%0APOST%20/stop%20of%2010.0.0.1%3A%20401 of testclient: 401")
    assert len(long) < 500


def test_who_asks_too_often_is_told_when_to_come_back(gateway: Gateway) -> None:
    client = gateway(gateway_rate=3)
    wait_until(lambda: client.get(STATUS).status_code == 429, every=0)
    refused = next(filter(lambda each: each.status_code == 429, map(client.get, 50 * [STATUS])))
    assert refused.headers["Retry-After"] == "1"
    assert client.get("/livez").status_code == 200


def test_a_body_has_an_end(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that does not say its length."""
    monkeypatch.setattr(access, "MAX_BODY", 1000)
    client = gateway()
    assert client.post(STOP, content=1001 * b" ").status_code == 413
    assert client.post(STOP, content=iter(11 * [100 * b" "])).status_code == 413
    assert client.post(STOP, content=1000 * b" ").status_code == 200


@pytest.mark.parametrize("value", ["[]", "{}", "1", '{"a": 1}'])
def test_a_body_has_so_many_values(gateway: Gateway, value: str) -> None:
    """However few bytes they have: it would take seconds to read them."""
    many = ",".join((access.MAX_VALUES + 1) * [value])
    answer = gateway().post(GENERATE, content=f"[{many}]")
    assert (answer.status_code, "commas" in answer.json()["detail"]) == (413, True)


def test_as_many_claims_as_may_wait_are_not_too_many(gateway: Gateway, worker: None) -> None:
    """This is refused for the model that they name."""
    claims = [{"nonce": nonce, "vector_b64": 32 * "A"} for nonce in range(MAX_PROOF_NONCES)]
    nonces = list(range(MAX_PROOF_NONCES))
    params = {"model": "other", "seq_len": 1}
    job = JOB | {"nonces": nonces, "validation": {"artifacts": claims}, "params": params}
    assert gateway().post(GENERATE, json=job).status_code == 409


def test_bodies_of_all_callers_have_an_end(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one holds is given back when it is answered."""
    monkeypatch.setattr(access, "MAX_BODIES", 1000)
    client = gateway()
    for _ in range(3):
        assert client.post(STOP, content=900 * b" ").status_code == 200
        assert client.post(STOP, content=1001 * b" ").status_code == 429


def test_a_head_is_a_get_without_a_body(gateway: Gateway) -> None:
    answer = gateway().head(STATUS)
    assert answer.status_code == 200


def test_beyond_loopback_it_asks_for_something() -> None:
    with pytest.raises(
        ConfigError,
        match="POC_GATEWAY_TOKENS or POC_GATEWAY_TLS_CLIENT_CA, or POC_GATEWAY_PUBLIC=true",
    ):
        serve(load_settings({}, gateway_host="0.0.0.0"))


def test_a_token_that_may_read_may_not_command_as_well() -> None:
    with pytest.raises(ConfigError, match="POC_GATEWAY_READ_TOKENS: a token in it is one of"):
        load_settings({}, gateway_tokens=f"{COMMANDS},{READS}", gateway_read_tokens=READS)


def test_a_certificate_that_is_not_there_is_named() -> None:
    files = {"gateway_tls_cert": "/nowhere/cert.pem", "gateway_tls_key": "/nowhere/key.pem"}
    with pytest.raises(ConfigError, match=r"POC_GATEWAY_TLS_CERT=/nowhere/cert\.pem"):
        serve(load_settings({}, **files))


@pytest.mark.parametrize("given", ["gateway_tls_cert", "gateway_tls_key", "gateway_tls_client_ca"])
def test_certificate_and_key_come_together(given: str) -> None:
    with pytest.raises(ConfigError, match="POC_GATEWAY_TLS_CERT and POC_GATEWAY_TLS_KEY"):
        load_settings({}, **{given: "file"})


@pytest.mark.parametrize("version", ["", "/v3.0.8", "/v3.0.13-alpha1"])
def test_a_version_may_stand_before_each_path(gateway: Gateway, worker: None, version: str) -> None:
    """As controllers put it there when the network has named one."""
    client = gateway()
    for path in (f"{POW}/status", "/api/v1/state", "/v1/models", "/health"):
        assert client.get(version + path).status_code == 200
    assert client.get("/v3/api/v1/state").status_code == 404
