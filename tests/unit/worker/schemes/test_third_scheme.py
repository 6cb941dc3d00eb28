"""A made-up scheme, in one file a side (`tests/signs_*.py`): nothing else has to know it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from receiver import Receiver
from shared.api import create_app
from shared.client import PoCClient
from shared.config import PoCConfig, PoCState
from shared.errors import InvalidRequest
from shared.requests import GenerateRequest, ValidateRequest, read
from shared.schemes import SCHEMES
from shared.settings import load_settings
from shared.status import RoundStatus
from shared.store import Store
from signs_tensors import registered, signs
from signs_terms import SignsVerdict
from support import wait_until
from ticket_sink import KeptTickets
from worker import gpu_random
from worker.engines.transformers_engine import TransformersEngine
from worker.manager import PoCManager
from worker.node.clerk import Clerk
from worker.node.heartbeat import Heartbeat
from worker.node.pipeline import Pipeline
from worker.sender import PoCCallbackSender
from worker.tools.make_model import make_model

BLOCK: dict[str, Any] = {"block_hash": "B10C", "block_height": 7, "public_key": "node"}
TERMS = {"length": 5, "wanted": "-"}


@pytest.fixture(autouse=True)
def _scheme() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    model = make_model(
        tmp_path_factory.mktemp("third") / "model",
        vocab_size=160,
        hidden_size=32,
        intermediate_size=48,
        max_seq_len=64,
    )
    engine = TransformersEngine(str(model), device="cpu", dtype="float32")
    yield engine
    engine.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def config(receiver: Receiver) -> PoCConfig:
    given = {"scheme": "signs", "batch_size": 4, "seq_len": 8}
    return PoCConfig.model_validate(BLOCK | TERMS | given | {"callback_url": receiver.url})


def expected(engine: TransformersEngine, count: int) -> dict[int, str]:
    """The signs of the first nonces, each from a forward of its own."""
    found = {}
    for nonce in range(count):
        inputs = gpu_random.generate_inputs("B10C", "node", [nonce], 32, 8, "cpu", torch.float32)
        with torch.inference_mode():
            logits = engine._model(inputs_embeds=inputs, use_cache=False).logits
        found[nonce] = signs(logits[0, -1, :5].tolist()) or ""
    return found


def status(store: Store) -> RoundStatus:
    found = store.rounds.status(newest=100)
    assert found
    return found


def test_a_round_from_the_command_to_the_callback(
    engine: TransformersEngine,
    store: Store,
    config: PoCConfig,
    receiver: Receiver,
    redis_url: str,
) -> None:
    """Through pipeline, store, clerk, sender, status and client, with a model that computes."""
    settings = load_settings({}, redis_url=redis_url, namespace=store.namespace)
    pipeline, sink, done = Pipeline(engine, store, "w"), KeptTickets(), threading.Event()
    manager = PoCManager(engine, store, pipeline=pipeline)
    clerk = Clerk(store, sink, store.subscribe("verdicts", "endings"))
    sender = threading.Thread(
        target=PoCCallbackSender(store, "s", settings).run, args=(done,), daemon=True
    )
    sender.start()
    try:
        manager.start_generate(GenerateRequest(config=config, round_id="r1", until_valid=6), "g")
        heartbeat = Heartbeat(pipeline, settings, done)
        heartbeat.beat()
        while status(store).state == PoCState.GENERATING:
            assert pipeline.step()
        pipeline.abandon()
        heartbeat.beat()
        clerk.turn()

        ended = status(store)
        right = expected(engine, ended.total_checked)
        valid = {nonce: proof for nonce, proof in right.items() if proof.count("-") >= 3}
        assert 6 <= ended.total_valid == len(valid) < ended.total_checked
        assert (ended.scheme, ended.terms, ended.r_target) == ("signs", TERMS, 0)
        assert dict(zip(ended.valid_nonces, ended.valid_proofs, strict=True)) == valid
        assert ended.valid_distances == []
        ((task, result),) = sink.results
        assert (task, result["valid_proofs"]) == ("g", ended.valid_proofs)
        assert result["error"] == ""

        client = PoCClient(settings)
        assert dict(client.nonces("r1")) == valid
        assert dict(itertools.islice(client.nonces("r1", start=4), 2)) == dict(
            list(valid.items())[4:6]
        )
        client.close()
        assert store.overview().node.terms == TERMS

        wait_until(lambda: status(store).callbacks_delivered == len(receiver.requests) > 0)
        told = receiver.bodies("/poc/generated")
        assert {int(n): s for body in told for n, s in body.items()} == valid
        assert status(store).callbacks_pending == 0

        judged(manager, pipeline, clerk, store, config, valid, sink, receiver)
    finally:
        done.set()
        sender.join(10)


def judged(
    manager: PoCManager,
    pipeline: Pipeline,
    clerk: Clerk,
    store: Store,
    config: PoCConfig,
    valid: dict[int, str],
    sink: KeptTickets,
    receiver: Receiver,
) -> None:
    """What the node found is judged by its own computation: as it is, and turned round."""
    honest = config.terms.batch_of(config, list(valid), list(valid.values()))
    turned = [each.translate({43: 45, 45: 43}) for each in valid.values()]
    forged = honest.model_copy(update={"signs": turned})
    for task, batch, fraud in (("v1", honest, False), ("v2", forged, True)):
        asked = read(ValidateRequest, {"batch": json.loads(batch.model_dump_json())})
        assert asked.batch == batch
        manager.open_validation(asked, task)
        while store.validations.progress()[task]["done"] < len(valid):
            pipeline.step()
        clerk.turn()
        verdict = SignsVerdict.model_validate(dict(sink.results)[task])
        assert verdict.signs == list(valid.values())
        assert verdict.is_fraud == fraud
        assert verdict.profile["engine"] == "transformers"
    kept = json.loads(store.validations.evidence("v2") or "{}")
    assert (kept["batch"]["signs"], kept["config"]["length"]) == (turned, 5)
    wait_until(lambda: len(receiver.bodies("/poc/validated")) == 2)
    outcomes = [each for each in store.overview().outcomes if each.id in ("v1", "v2")]
    assert {each.id: each.n_invalid for each in outcomes} == {"v1": 0, "v2": len(valid)}


def test_what_is_its_own_is_refused_by_name() -> None:
    for fields, why in (
        ({"scheme": "signs", "length": 65}, r"config\.length"),
        ({"scheme": "signs", "r_target": 1.0}, "r_target: a field of the scheme distance"),
        ({"scheme": "signs", "k_dim": 1}, "k_dim: a field of the scheme artifact"),
        ({"r_target": 1.0, "length": 5}, "length: a field of the scheme signs"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            read(GenerateRequest, {"config": BLOCK | fields})
    with pytest.raises(InvalidRequest, match=r"batch\.signs\.0"):
        read(ValidateRequest, {"batch": BLOCK | {"nonces": [1], "signs": ["?"]}})


def test_its_nonces_end_where_it_says(engine: TransformersEngine, store: Store) -> None:
    """A thousand of them."""
    given = BLOCK | {"scheme": "signs", "node_id": 3, "node_count": 100, "batch_size": 4}
    config = PoCConfig.model_validate(given | {"seq_len": 1})
    store.rounds.generate("g", GenerateRequest(config=config))
    pipeline = Pipeline(engine, store, "w")
    while pipeline.step():
        pass
    found = status(store)
    assert (found.total_checked, found.error) == (
        10,
        "all 10 nonces of this node were handed out",
    )


def test_who_does_not_know_it_still_looks_on(
    engine: TransformersEngine, store: Store, config: PoCConfig
) -> None:
    """A status API or a page elsewhere, without the file: proofs are shown as they are kept."""
    store.rounds.generate("g", GenerateRequest(config=config, until_valid=4))
    pipeline = Pipeline(engine, store, "w")
    while status(store).state == PoCState.GENERATING:
        pipeline.step()
    pipeline.abandon()
    known = status(store)
    scheme = SCHEMES.pop("signs")
    try:
        settings = load_settings({}, namespace=store.namespace)
        with TestClient(create_app(settings, store)) as api:
            page = api.get("/api/v1/pow/nonces").json()
            seen = api.get("/api/v1/pow/status?newest=1000").json()
            whole = api.get("/api/v1/pow/overview").json()
    finally:
        SCHEMES["signs"] = scheme
    assert dict(zip(page["nonces"], page["proofs"], strict=True)) == dict(
        zip(known.valid_nonces, known.valid_proofs, strict=True)
    )
    assert (seen["scheme"], seen["valid_proofs"]) == ("signs", known.valid_proofs)
    assert whole["node"]["total_valid"] == known.total_valid >= 4
