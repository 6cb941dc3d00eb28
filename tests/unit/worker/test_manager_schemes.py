"""What a manager refuses since its model can't compute it, by name; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fake_engine import FakeEngine
from shared.config import PoCConfig
from shared.errors import InvalidRequest
from shared.requests import GenerateRequest, InitRequest, ValidateRequest
from shared.schemes.artifact import ArtifactBatch
from shared.store import Store
from shared.store.connection import Client
from worker.manager import PoCManager
from worker.node.pipeline import Pipeline

BLOCK: dict[str, Any] = {"block_hash": "B10C", "block_height": 7, "public_key": "node"}
WHY = "Odd: has no decoder layers in any of model.layers, and the artifact scheme computes between"


def config(**fields: Any) -> PoCConfig:
    return PoCConfig.model_validate(BLOCK | {"scheme": "artifact"} | fields)


def test_a_model_without_layers_that_can_be_found(
    new_engine: Callable[..., FakeEngine], store: Store
) -> None:
    """It says so of itself, once; rounds of the other scheme are computed."""
    engine = new_engine()
    engine.info = replace(engine.info, without={"artifact": WHY})
    refused_by_all(PoCManager(engine, store), config(), WHY)
    distance = PoCConfig.model_validate(BLOCK | {"r_target": 1.0})
    assert PoCManager(engine, store).init_round(distance).scheme == "distance"


def test_a_round_that_another_worker_opened(
    new_engine: Callable[..., FakeEngine], store: Store
) -> None:
    """None of its batches fail here: this worker takes none."""
    PoCManager(new_engine(), store).start_generate(config(k_dim=1))
    engine = new_engine()
    engine.info = replace(engine.info, without={"artifact": WHY})
    assert not Pipeline(engine, store, "w").step()
    status = store.status()
    assert (status.total_failed, status.scheme) == (0, "artifact")
    assert "worker w can't compute the scheme artifact" in status.error


def test_a_batch_that_nobody_can_judge(new_engine: Callable[..., FakeEngine], store: Store) -> None:
    """Given that the worker which took it is gone, this one ends it with the reason."""
    batch = ArtifactBatch(**BLOCK, nonces=[1])
    asked = ValidateRequest(batch=batch, config=config(k_dim=1))
    PoCManager(new_engine(), store).open_validation(asked)
    engine = new_engine()
    engine.info = replace(engine.info, without={"artifact": WHY})
    pipeline = Pipeline(engine, store, "w")
    while pipeline.step():
        pass
    done = store.validations.next_computed()
    assert done
    assert (done.proofs, done.error) == ([None], "no live worker can compute the scheme artifact")


def test_more_numbers_than_a_hidden_state_has(
    new_engine: Callable[..., FakeEngine], store: Store, redis: Client
) -> None:
    engine = new_engine()
    engine.info = replace(engine.info, hidden_size=8)
    refused_by_all(PoCManager(engine, store), config(), "k_dim=12: .* only 8")
    assert redis.keys("*round*") == []
    assert PoCManager(engine, store).init_round(config(k_dim=8)).scheme == "artifact"


def refused_by_all(manager: PoCManager, given: PoCConfig, why: str) -> None:
    """Every command that brings a config, and a batch that brings one."""
    before = manager.get_status()
    with pytest.raises(InvalidRequest, match=why):
        manager.init_round(InitRequest(config=given))
    with pytest.raises(InvalidRequest, match=why):
        manager.start_generate(GenerateRequest(config=given))
    with pytest.raises(InvalidRequest, match=why):
        manager.start_validate(ValidateRequest(config=given))
    batch = ArtifactBatch(**BLOCK, nonces=[1])
    with pytest.raises(InvalidRequest, match=why):
        manager.open_validation(ValidateRequest(batch=batch, config=given))
    assert manager.get_status() == before
