"""Rounds of the scheme `artifact` by real workers with a model that computes."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from exactness import without_gap
from plain_artifacts import PlainModel
from preloaded import Fork
from raw import meta, push
from receiver import Receiver
from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.errors import InvalidRequest, RoundMismatch
from shared.schemes.artifact import ComputedArtifacts, ValidatedArtifacts
from shared.settings import Settings, load_settings
from shared.status import NodeStatus
from shared.store import Store
from signs_tensors import registered
from support import ROOT, clean_environment, wait_until
from vectors import decoded, encoded, made_up
from worker.children import end
from worker.tools.embedded import EmbeddedRedis
from worker.tools.make_model import make_model

# Three workers load torch at the same time, which a busy machine takes minutes for.
pytestmark = [pytest.mark.functional, pytest.mark.timeout(300)]

SEQ_LEN, BATCH_SIZE, HIDDEN = 16, 16, 64
BLOCK: dict[str, Any] = {"block_hash": "B10C", "block_height": 7, "public_key": "02node"}
FIELDS = BLOCK | {"scheme": "artifact", "seq_len": SEQ_LEN, "batch_size": BATCH_SIZE}
CONFIG = PoCConfig.model_validate(FIELDS)
#: Nonces that a validation takes in the network, and of these the wrong ones that are to be found.
SAMPLE, WRONG = range(1000, 1200), 30
#: L2 of two vectors of the same numbers, after float16.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Qwen3."""
    return make_model(
        tmp_path_factory.mktemp("artifacts") / "model", hidden_size=HIDDEN, max_seq_len=64
    )


@pytest.fixture(scope="module")
def settings(redis_server: EmbeddedRedis) -> Settings:
    """A namespace that all tests here share, with the workers in it."""
    redis_server.start()
    with contextlib.closing(redis.Redis.from_url(redis_server.url)) as direct:
        direct.flushall()
    return load_settings(
        {}, redis_url=redis_server.url, namespace="test", lease_s="2", heartbeat_s="0.5"
    )


@pytest.fixture(scope="module")
def workers(
    settings: Settings, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Fork]]:
    """Two for artifacts, and one in another namespace that knows a third scheme."""
    directory = tmp_path_factory.mktemp("workers")
    started: dict[str, Fork] = {}

    def start(name: str, **variables: str) -> None:
        env = clean_environment(
            POC_REDIS_URL=settings.redis_url,
            POC_NAMESPACE=settings.namespace,
            POC_LEASE_S=str(settings.lease_s),
            POC_HEARTBEAT_S=str(settings.heartbeat_s),
            POC_ENGINE="transformers",
            POC_MODEL=str(model),
            POC_DEVICE="cpu",
            POC_WORKER_NAME=f"{name}@test",
            PYTHONPATH=str(ROOT / "tests"),
        )
        log = directory / f"{name}.log"
        started[name] = Fork(["worker"], env=env | variables, cwd=ROOT, log_path=log)

    def ready(name: str) -> bool:
        said = (directory / f"{name}.log").read_text(errors="replace")
        assert started[name].poll() is None, said
        return f"{name}@test ready." in said

    try:
        start("w0")
        start("w1")
        start("other", POC_NAMESPACE="other", POC_ENGINE="signs_tensors:load")
        for name in started:
            wait_until(lambda name=name: ready(name), 240, f"{name} to be ready", every=0.05)
        yield started
    finally:
        for each in started.values():
            end(each, timeout=10)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with contextlib.closing(Store(settings)) as store:
        yield store


@pytest.fixture
def client(settings: Settings, workers: dict[str, Fork]) -> Iterator[PoCClient]:
    """A controller of workers that are ready, and idle before and after."""
    with contextlib.closing(PoCClient(settings)) as client:
        yield client
        client.stop()


@pytest.fixture(scope="module")
def plain(model: Path) -> PlainModel:
    """The same model, computed in plain words."""
    return PlainModel(model)


class Timed(list[Any]):
    """Requests, and when each came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def append(self, item: Any) -> None:
        self.times.append(time.monotonic())
        super().append(item)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        receiver.requests = Timed()
        yield receiver


def bodies(receiver: Receiver) -> list[dict[str, Any]]:
    return receiver.bodies("/poc/generated")


def told(receiver: Receiver) -> list[tuple[int, str]]:
    """Nonces and vectors of all messages, in the order in which these came."""
    return [(a["nonce"], a["vector_b64"]) for body in bodies(receiver) for a in body["artifacts"]]


def counted(store: Store, round_id: str, total: int) -> dict[int, str]:
    """What the store has of a round, each nonce once."""
    nonces, vectors = store.rounds.found(round_id, 0, total + 1, "artifact")
    assert len(nonces) == len(set(nonces)) == total
    return dict(zip(nonces, map(str, vectors), strict=True))


def apart(vector: str, numbers: list[float]) -> float:
    return math.dist(decoded(vector), numbers)


def judged(client: PoCClient, vectors: list[str], **terms: Any) -> ValidatedArtifacts:
    """The verdict on what is claimed for SAMPLE."""
    batch = BLOCK | {"nonces": list(SAMPLE), "vectors": vectors}
    verdict = client.validate_batch(batch, FIELDS | terms).wait(60)
    assert isinstance(verdict, ValidatedArtifacts)
    return verdict


@pytest.fixture(scope="module")
def honest(plain: PlainModel) -> list[str]:
    """What a node with float32 claims."""
    return list(map(encoded, plain.vectors("B10C", "02node", SAMPLE, SEQ_LEN)))


def test_a_whole_round(
    client: PoCClient, store: Store, receiver: Receiver, plain: PlainModel
) -> None:
    """All vectors are those of an independent computation, and all of them are told once."""
    ticket = client.generate(FIELDS | {"callback_url": receiver.url}, until_valid=400)
    began = time.monotonic()
    wait_until(lambda: receiver.requests, 30, "the first callback", every=0.001)
    first = receiver.requests.times[0] - began
    print(f"\nfrom the command's answer to the first delivery: {first:.3f} s")
    assert first < 5
    ended = ticket.wait(60)
    assert ended.state == PoCState.STOPPED
    assert ended.total_checked == ended.total_valid >= 400
    assert ended.total_failed == 0
    assert ended.terms == {
        "k_dim": 12,
        "dist_threshold": 0.4,
        "p_mismatch": 0.1,
        "p_value_threshold": 0.05,
    }
    found = counted(store, ended.round_id, ended.total_valid)
    assert dict(client.nonces(ended.round_id)) == found
    assert dict(zip(ended.valid_nonces, ended.valid_proofs, strict=True)) == found

    nonces = sorted(found)
    right = plain.vectors("B10C", "02node", nonces, SEQ_LEN)
    assert max(map(apart, map(found.get, nonces), right)) < TOLERANCE
    without_gap(nonces, CONFIG, open_batches=2 * 2)

    wait_until(lambda: store.status().callbacks_pending == 0, 20, "the last callback")
    assert sorted(told(receiver)) == sorted(found.items())
    posts = bodies(receiver)
    assert len(posts) == store.status().callbacks_delivered < len(found) / BATCH_SIZE / 2
    for body in posts:
        assert {name: body[name] for name in body if name != "artifacts"} == BLOCK | {
            "node_id": 0,
            "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
        }
        assert all(set(each) == {"nonce", "vector_b64"} for each in body["artifacts"])
    keys = [headers["Idempotency-Key"] for _, headers, _ in receiver.requests]
    assert len(keys) == len(set(keys))


def test_callbacks_come_steadily(client: PoCClient, store: Store, receiver: Receiver) -> None:
    """About one a second from the first batch on, however many batches that are."""
    sent = time.monotonic()
    ended = client.generate(FIELDS | {"callback_url": receiver.url}, seconds=4).wait(60)
    wait_until(lambda: store.status().callbacks_pending == 0, 20, "the last callback")
    times = receiver.requests.times
    gaps = [b - a for a, b in itertools.pairwise(times)]
    print(
        f"\nfrom the command to the first delivery: {times[0] - sent:.3f} s; then "
        f"{len(gaps)} more of {ended.total_valid} nonces, {max(gaps):.2f} s apart at most"
    )
    assert times[0] - sent < 5
    assert 3 <= len(times) <= 7
    assert max(gaps) < 3
    assert sorted(told(receiver)) == sorted(
        counted(store, ended.round_id, ended.total_valid).items()
    )


def test_a_third_scheme_in_a_real_worker(settings: Settings, workers: dict[str, Fork]) -> None:
    """One file a side, and an engine that brings it; the client and the store have never heard."""
    elsewhere = settings.model_copy(update={"namespace": "other"})
    fields = BLOCK | {"scheme": "signs", "length": 5, "seq_len": 8, "batch_size": 4}
    with registered(), contextlib.closing(PoCClient(elsewhere)) as client:
        ended = client.generate(fields, until_valid=10).wait(60)
        assert (ended.scheme, ended.terms) == ("signs", {"length": 5, "wanted": "+"})
        assert 10 <= ended.total_valid < ended.total_checked
        assert all(set(str(each)) <= {"+", "-"} for each in ended.valid_proofs)
        batch = PoCConfig.model_validate(fields).terms.batch_of(
            PoCConfig.model_validate(fields), ended.valid_nonces, ended.valid_proofs
        )
        verdict = client.validate_batch(batch, fields).wait(60)
        assert verdict.ended
        assert verdict.ended[:2] == (len(ended.valid_nonces), 0)
        assert not verdict.is_fraud


class TestValidation:
    def test_an_honest_node_passes(self, client: PoCClient, honest: list[str]) -> None:
        """By the vectors of an independent computation."""
        verdict = judged(client, honest)
        assert (verdict.n_total, verdict.n_mismatch, verdict.p_value) == (200, 0, 1.0)
        assert not verdict.is_fraud
        assert max(each for each in verdict.l2 if each is not None) < TOLERANCE
        assert len(verdict.l2) == 200
        assert verdict.profile["dtype"] == "float32"

    def test_an_honest_node_with_other_floats_passes(self, client: PoCClient, model: Path) -> None:
        theirs = PlainModel(model, torch.bfloat16).vectors("B10C", "02node", SAMPLE, SEQ_LEN)
        verdict = judged(client, list(map(encoded, theirs)))
        l2 = [each for each in verdict.l2 if each is not None]
        print(f"\nbfloat16 against float32: L2 {sum(l2) / len(l2):.3f}, at most {max(l2):.3f}")
        assert (verdict.n_total, verdict.is_fraud) == (200, False)
        assert verdict.p_value > 0.5

    @pytest.mark.parametrize(
        ("given", "key"),
        [({}, ""), ({"fraud_threshold": 0.05}, "fraud_threshold")],
        ids=["by default", "by the nodes' name"],
    )
    def test_fifteen_in_a_hundred_wrong_vectors_are_fraud(
        self, given: dict[str, float], key: str, client: PoCClient, honest: list[str]
    ) -> None:
        """Thirty of two hundred, which an honest node has once in seventy."""
        wrong = set(SAMPLE[:: len(SAMPLE) // WRONG][:WRONG])
        pairs = zip(SAMPLE, honest, strict=True)
        claimed = [made_up(nonce) if nonce in wrong else vector for nonce, vector in pairs]
        verdict = judged(client, claimed, **given)
        assert verdict.is_fraud
        assert verdict.n_mismatch == WRONG
        assert verdict.mismatch_nonces == sorted(wrong)
        assert verdict.p_value == pytest.approx(0.0164, abs=2e-3)
        assert (verdict.p_value_threshold, verdict.threshold_key) == (0.05, key)
        # As the fleet judges today it takes 31.
        assert not judged(client, claimed, p_value_threshold=0.01).is_fraud

    def test_what_can_not_be_compared_is_wrong(self, client: PoCClient, honest: list[str]) -> None:
        """Of another length, with NaN or infinities: that claim alone."""
        bad = [encoded([math.nan] * 12), encoded([math.inf] + [0.0] * 11), "", encoded([1.0] * 11)]
        verdict = judged(client, bad + honest[4:])
        assert verdict.mismatch_nonces == list(SAMPLE[:4])
        assert verdict.l2[:4] == [None] * 4
        assert not verdict.is_fraud

    def test_without_claims_the_vectors_come_back(
        self, client: PoCClient, store: Store, honest: list[str], receiver: Receiver
    ) -> None:
        """To the ticket, and to a receiver."""
        asked = BLOCK | {"scheme": "artifact", "nonces": list(SAMPLE), "node_id": 0}
        config = FIELDS | {"callback_url": receiver.url}
        answer = client.validate_batch(asked, config).wait(60)
        assert isinstance(answer, ComputedArtifacts)
        assert answer.nonces == list(SAMPLE)
        for ours, theirs in zip(answer.vectors, honest, strict=True):
            assert ours
            assert math.dist(decoded(ours), decoded(theirs)) < TOLERANCE
        told = wait_until(lambda: receiver.bodies("/poc/generated"), 20, "the callback")[0]
        assert [each["vector_b64"] for each in told["artifacts"]] == answer.vectors
        newest = store.overview().outcomes[0]
        assert (newest.nonces, newest.fraud_detected, newest.error) == (200, False, "")

    def test_what_a_round_told_is_judged_as_it_was_told(
        self, client: PoCClient, receiver: Receiver
    ) -> None:
        """The body of a callback is a batch."""
        config = FIELDS | {"callback_url": receiver.url}
        client.generate(config, until_valid=64).wait(60)
        body = wait_until(lambda: bodies(receiver), 20, "a callback")[0]
        verdict = client.validate_batch(body, config).wait(60)
        assert verdict.ended
        assert verdict.ended[:2] == (len(body["artifacts"]), 0)


class TestRefusals:
    """Each by name, by the client and by the worker; nothing is changed."""

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"r_target": 1.4}, "r_target: a field of the scheme distance, and this is artifact"),
            ({"scheme": "distance", "k_dim": 12}, "k_dim: a field of the scheme artifact"),
            ({"scheme": "lottery"}, "there is no scheme 'lottery'"),
            ({"k_dim": 0}, "config.k_dim: "),
            ({"dist_threshold": 3}, "config.dist_threshold: "),
            ({"fraud_threshold": 2}, "threshold: "),
        ],
    )
    def test_a_config(
        self, fields: dict[str, Any], why: str, client: PoCClient, store: Store
    ) -> None:
        before = state(store)
        with pytest.raises(InvalidRequest) as refused:
            client.generate(FIELDS | fields)
        assert why in str(refused.value)
        assert why in refusal(store, "poc.generate", {"config": FIELDS | fields})
        assert state(store) == before

    def test_more_numbers_than_the_model_has(self, client: PoCClient, store: Store) -> None:
        """Which the worker alone knows."""
        before = state(store)
        for ask in (client.init, client.generate, client.validate):
            with pytest.raises(InvalidRequest, match=r"k_dim=65: .* only 64"):
                ask(FIELDS | {"k_dim": 65})
        with pytest.raises(InvalidRequest, match="k_dim=65"):
            client.validate_batch(
                BLOCK | {"scheme": "artifact", "nonces": [1]}, FIELDS | {"k_dim": 65}
            )
        assert state(store) == before

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"vectors": ["no base64!"]}, "batch.vectors.0: is no base64"),
            ({"vectors": []}, "1 nonces but 0 vectors"),
            ({"nonces": [2**31], "vectors": [""]}, "batch.nonces.0: "),
            ({"encoding": {"dtype": "bf16"}}, "batch.encoding.dtype: "),
            ({"artifacts": [{"nonce": 2, "vector_b64": ""}]}, "artifacts: their nonces must be"),
            ({"dist": [0.1]}, "batch.dist: "),
            ({"scheme": "lottery"}, "there is no scheme 'lottery'"),
        ],
    )
    def test_a_batch(
        self, fields: dict[str, Any], why: str, client: PoCClient, store: Store
    ) -> None:
        before = state(store)
        batch = BLOCK | {"scheme": "artifact", "nonces": [1]} | fields
        with pytest.raises(InvalidRequest) as refused:
            client.validate_batch(batch, CONFIG)
        assert why in str(refused.value)
        assert why in refusal(store, "poc.validate", {"batch": batch, "config": FIELDS})
        assert state(store) == before

    def test_a_batch_that_the_config_can_not_judge(self, client: PoCClient, store: Store) -> None:
        """Of another encoding, another scheme, another block."""
        before = state(store)
        ours = BLOCK | {"scheme": "artifact", "nonces": [1], "vectors": [""]}
        with pytest.raises(InvalidRequest, match=r"batch\.encoding: .*'k_dim': 8.* k_dim=12"):
            client.validate_batch(ours | {"encoding": {"k_dim": 8}}, CONFIG)
        theirs = BLOCK | {"nonces": [1], "dist": [0.1]}
        with pytest.raises(RoundMismatch, match=r"of the scheme distance, .* of the scheme artif"):
            client.validate_batch(theirs, CONFIG)
        with pytest.raises(RoundMismatch, match="of block other at 7"):
            client.validate_batch(ours | {"block_hash": "other"}, CONFIG)
        assert state(store) == before


def test_a_worker_that_is_killed_loses_and_repeats_nothing(
    client: PoCClient, store: Store, receiver: Receiver, workers: dict[str, Fork], plain: PlainModel
) -> None:
    """In the middle of a round: all that counts is there once, and told once; no hole is left."""
    ticket = client.generate(FIELDS | {"callback_url": receiver.url})
    wait_until(
        lambda: all(each.computed > 0 and each.state == "generating" for each in both(store)),
        20,
        "both to take part",
    )
    workers["w1"].kill()
    workers["w1"].wait()
    then = store.status()
    # Both had work in hand, which begins a little beyond what was counted.
    held = range(max(found_of(store, then)) + 1 + 4 * BATCH_SIZE)
    wait_until(
        lambda: found_of(store, store.status()).issuperset(held),
        30,
        "what the killed one held to be computed by the other",
        every=0.2,
    )
    client.stop()
    ended = ticket.wait(20)
    assert ended.total_checked == ended.total_valid
    assert ended.total_failed == 0
    found = counted(store, ended.round_id, ended.total_valid)
    without_gap(sorted(found), CONFIG, open_batches=2)
    wait_until(lambda: store.status().callbacks_pending == 0, 20, "the last callback")
    assert dict(told(receiver)) == found
    # A message of the killed worker's sender may come twice, under the same key.
    by_key = {headers["Idempotency-Key"]: body for _, headers, body in receiver.requests}
    assert sum(body.count(b'"nonce"') for body in by_key.values()) == len(found)
    some = sorted(found)[:: max(1, len(found) // 100)]
    right = plain.vectors("B10C", "02node", some, SEQ_LEN)
    assert max(map(apart, map(found.get, some), right)) < TOLERANCE


def both(store: Store) -> list[Any]:
    workers = store.status().workers
    assert len(workers) == 2
    return workers


def found_of(store: Store, status: NodeStatus) -> set[int]:
    """The nonces that a status counts."""
    return set(store.rounds.found(status.round_id, 0, status.total_valid, "artifact")[0])


def state(store: Store) -> tuple[Any, ...]:
    """What a refused command must leave as it is."""
    now: NodeStatus = store.status()
    about = now.model_dump(exclude={"workers", "updated_at", "elapsed_seconds"})
    return (about, store.validations.progress(), store.overview().outcomes)


def refusal(store: Store, task: str, kwargs: dict[str, Any]) -> str:
    """What a worker says to a caller that checks nothing."""
    with contextlib.closing(redis.Redis.from_url(store._settings.redis_url)) as direct:
        asked = push(direct, task, kwargs)
        answer = wait_until(
            lambda: (found := meta(direct, asked))["status"] == "FAILURE" and found,
            description="the refusal",
        )
    assert answer["result"]["exc_type"] == "InvalidRequest"
    return str(answer["result"]["exc_message"])
