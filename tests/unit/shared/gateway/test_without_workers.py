"""A node without workers: nothing is begun, and nothing waits for them."""

from __future__ import annotations

from calls import JOB, POW, ROUND, Gateway


def test_it_has_no_backends(gateway: Gateway) -> None:
    client = gateway()
    assert client.get(f"{POW}/status").json()["status"] == "NO_BACKENDS"
    assert client.get("/api/v1/state").json()["state"] == "STOPPED"
    assert client.post(f"{POW}/stop").json() == {"status": "OK", "message": "No backends to stop"}


def test_what_needs_one_is_refused_for_now(gateway: Gateway) -> None:
    client = gateway()
    for answer in (
        client.post(f"{POW}/init/generate", json=ROUND),
        client.post(f"{POW}/generate", json=JOB),
        client.get("/health"),
        client.get("/readyz"),
        client.get("/v1/models"),
    ):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
