"""Receipts of rounds in a real Redis, by the command that operators use."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preloaded
from shared.config import PoCConfig
from shared.requests import GenerateRequest
from shared.settings import Settings
from shared.status import Commit, Incident
from shared.store import Computed, Message, Store, fresh_id
from support import ROOT, clean_environment, kept
from worker.tools import receipt as tool

pytestmark = pytest.mark.functional

CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="me", r_target=1.4, batch_size=4)
KEY = base64.b64encode(bytes(range(32))).decode()
GPU = {"name": "A card", "uuid": "GPU-1", "temperature_celsius": 60}

Poc = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def poc(settings: Settings) -> Poc:
    """Run `poc receipt` with these arguments and variables."""
    env = clean_environment() | {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
    }

    def poc(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return preloaded.run(["receipt", *args], env=env | variables, cwd=ROOT)

    return poc


@pytest.fixture
def verified(poc: Poc, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The receipt that `poc receipt` makes with a key, as its check shows it."""

    def verified(*args: str) -> dict[str, Any]:
        made = poc(*args, POC_RECEIPT_KEY=KEY)
        assert made.returncode == 0, made.stderr
        file = tmp_path / "receipt.json"
        file.write_text(made.stdout)
        checked = poc("--verify", str(file), "--signer", signer(made.stdout), "--json")
        assert checked.returncode == 0, checked.stderr
        found: dict[str, Any] = json.loads(checked.stdout)
        return found

    return verified


def signer(text: str) -> str:
    key: str = json.loads(text)["signatures"][0]["keyid"]
    return key


def play(store: Store, round_id: str, batches: int = 3) -> None:
    """A round in which each batch of four finds two valid nonces and one that fails."""
    store.workers.heartbeat(
        "w",
        {"fingerprint": "f"},
        {"model": "m", "device": "cuda:0", "vocab_size": "1024", "gpus": json.dumps([GPU])},
        tokens=[],
        counted=(round_id, {-2: 3, 0: 6}),
    )
    store.rounds.generate(
        fresh_id(), GenerateRequest(config=CONFIG, round_id=round_id, replace=True)
    )
    for _ in range(batches):
        claim = store.rounds.claim("w", fresh_id())
        assert claim
        first, second, *_ = claim.nonces
        message = Message("http://c", "{}", fresh_id(), round_id, 60)
        valid = [(second, 1.25 + second / 1000), (first, 1e-07 * (first + 1))]
        computed = Computed(3, kept(valid), failed=1, message=message)
        assert store.rounds.commit(claim, computed) is None
    delivered, refused, *_ = store.outbox.take("s", 10)
    store.outbox.settle(delivered)
    store.outbox.settle(refused, "it answered 404 Not Found", "status_404")


def test_it_tells_what_the_round_was(store: Store, verified: Callable[..., Any]) -> None:
    """Config, counts, callbacks, devices, and each incident that has to do with it."""
    play(store, "r1")
    now = store.overview().at
    doubt = Commit(round_id="r1", start=0, count=4, first_nonce=0, last_nonce=3, at=now)
    for reason, at, commits in (
        ("before", 1.0, []),
        ("during", store.status().updated_at, []),
        ("after, of its nonces", now + 1000, [doubt]),
    ):
        store.workers.report(Incident(worker="w", at=at, reason=reason, commits=commits))
    seen = verified("r1")
    shown = seen["round"]
    assert shown["state"] == "GENERATING"
    for name in ("block_hash", "block_height", "public_key", "r_target", "batch_size", "seq_len"):
        assert shown[name] == getattr(CONFIG, name)
    assert [shown[f"total_{n}"] for n in ("checked", "valid", "failed")] == [9, 6, 3]
    assert [shown[f"callbacks_{n}"] for n in ("pending", "delivered", "refused")] == [1, 1, 1]
    assert shown["callback_error"] == "it answered 404 Not Found"
    assert "valid_nonces" not in shown
    assert seen["workers"][0]["gpus"] == [{"name": "A card", "uuid": "GPU-1"}]
    assert [each["reason"] for each in seen["incidents"]] == ["after, of its nonces", "during"]
    assert seen["made_at"] >= shown["started_at"] > 0
    assert seen["software"].startswith("poc-worker")


def test_the_digest_is_that_of_the_rounds_nonces(
    store: Store, verified: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order of discovery, however many pages they are in."""
    play(store, "r1")
    nonces, distances = store.rounds.found("r1", 0, 100)
    assert nonces == [1, 0, 5, 4, 9, 8]
    lines = "".join(f"{n} {d!r}\n" for n, d in zip(nonces, distances, strict=True))
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert verified()["nonces"] | {"rule": ""} == {"count": 6, "sha256": expected, "rule": ""}
    monkeypatch.setattr(tool, "PAGE", 4)
    assert tool.receipt_of(store, "r1").nonces.sha256 == expected


def test_a_round_that_is_over_has_one(store: Store, verified: Callable[..., Any]) -> None:
    """With its own course and histogram, while it is kept."""
    play(store, "r1")
    store.rounds.stop(fresh_id())
    store.workers.heartbeat("w", {"fingerprint": "f"}, {"vocab_size": "1024"}, tokens=[])
    before = verified("r1")
    play(store, "r2", batches=2)
    after = verified("r1")
    assert after["round"] == before["round"]
    assert after["history"] == before["history"]
    assert [each["checked"] for each in after["history"]] == [9]
    assert after["nonces"] == before["nonces"]
    assert verified()["round"]["round_id"] == "r2"


def test_the_histogram_is_the_rounds(store: Store, verified: Callable[..., Any]) -> None:
    play(store, "r1")
    store.workers.heartbeat(
        "w", {"fingerprint": "f"}, {"vocab_size": "1024"}, [], counted=("r1", {-2: 3, 0: 6})
    )
    assert [each["nonces"] for each in verified("r1")["histogram"]] == [3, 0, 6]
    play(store, "r2", batches=2)
    assert [each["nonces"] for each in verified("r1")["histogram"]] == [3, 0, 6]


def test_what_was_tampered_with_is_refused(store: Store, poc: Poc, tmp_path: Path) -> None:
    """Given one more valid nonce, another signer or no signature at all, with status 1."""
    play(store, "r1")
    made = json.loads(poc(POC_RECEIPT_KEY=KEY).stdout)
    payload = base64.b64decode(made["payload"]).replace(b'"total_valid": 6', b'"total_valid": 7')
    assert payload != base64.b64decode(made["payload"])
    for name, parts in {
        "edited": {"payload": base64.b64encode(payload).decode()},
        "bare": {"signatures": []},
    }.items():
        file = tmp_path / name
        file.write_text(json.dumps(made | parts))
        checked = poc("--verify", str(file))
        assert (checked.returncode, checked.stdout) == (1, "")
        assert f"{name}: it" in checked.stderr
    genuine = tmp_path / "genuine"
    genuine.write_text(json.dumps(made))
    another = base64.b64encode(bytes(32)).decode()
    assert poc("--verify", str(genuine)).returncode == 0
    assert poc("--verify", str(genuine), "--signer", another).returncode == 1


def test_a_check_tells_the_main_facts(store: Store, poc: Poc, tmp_path: Path) -> None:
    """And whose signature it is, if nobody said whose it has to be."""
    play(store, "r1")
    made = poc(POC_RECEIPT_KEY=KEY).stdout
    file = tmp_path / "receipt.json"
    file.write_text(made)
    checked = poc("--verify", str(file))
    said = " ".join(checked.stdout.split())
    assert said.startswith(f"verdict genuine, signed by {signer(made)} made ")
    for fact in ("round r1, GENERATING", "block b10c at 7", "valid 6 of 9", "w on A card"):
        assert fact in said
    assert "see that this is the node's key" in " ".join(checked.stderr.split())


def test_without_a_key_it_says_that_it_is_not_signed(store: Store, poc: Poc) -> None:
    play(store, "r1")
    made = poc()
    assert made.returncode == 0
    assert json.loads(made.stdout)["signatures"] == []
    assert "POC_RECEIPT_KEY" in made.stderr


@pytest.mark.parametrize(
    ("args", "variables", "status", "words"),
    [
        (["never"], {}, 1, "no round never is kept"),
        ([], {}, 1, "Round not initialized"),
        (["--verify", "/nowhere"], {}, 2, "can't be read"),
        (["--verify", "pyproject.toml"], {}, 2, "no signed document"),
        (["r1", "--verify", "x"], {}, 2, "takes a file and no round"),
        (["--signer", "x"], {}, 2, "goes with --verify"),
        (["--json"], {}, 2, "goes with --verify"),
        ([], {"POC_RECEIPT_KEY": "c2hvcnQ="}, 2, "POC_RECEIPT_KEY: must be base64 of 32"),
    ],
)
def test_what_can_not_be_done_is_said(
    args: list[str], variables: dict[str, str], status: int, words: str, poc: Poc
) -> None:
    """And no part of a secret with it."""
    done = poc(*args, **variables)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in " ".join(done.stderr.split())
    assert "c2hvcnQ=" not in done.stderr
