"""What a task's arguments may be wrong in: the refusal names the field."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from pydantic import BaseModel

from shared.config import MAX_NONCE
from shared.errors import InvalidRequest
from shared.requests import (
    CancelRequest,
    GenerateRequest,
    InitRequest,
    StopRequest,
    ValidateRequest,
    read,
)
from shared.wire import MAX_PROOF_NONCES

REQUESTS: dict[str, type[BaseModel]] = {
    "poc.init": InitRequest,
    "poc.generate": GenerateRequest,
    "poc.validate": ValidateRequest,
    "poc.stop": StopRequest,
    "poc.cancel": CancelRequest,
}

CONFIG = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.0}
BATCH = {
    "public_key": "k",
    "block_hash": "b",
    "block_height": 1,
    "nonces": [0, 1],
    "dist": [0.5, 0.25],
}

#: What a config is given, and what the refusal says about it.
BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"r_tarket": 1.0}, "config.r_tarket: Extra inputs are not permitted"),
    "text for a number": ({"r_target": "1.0"}, "config.r_target: Input should be a valid number"),
    "number for text": ({"block_hash": 7}, "config.block_hash: Input should be a valid string"),
    "fraction of a nonce": ({"node_id": 0.5}, "config.node_id: Input should be a valid integer"),
    "truth for a number": ({"batch_size": True}, "config.batch_size: Input should be a valid int"),
    "empty text": ({"public_key": ""}, "config.public_key: String should have at least 1"),
    "long text": ({"block_hash": "x" * 257}, "config.block_hash: String should have at most 256"),
    "null": ({"public_key": None}, "config.public_key: Input should be a valid string"),
    "target 0": ({"r_target": 0}, "config.r_target: Input should be greater than 0"),
    "negative target": ({"r_target": -0.1}, "config.r_target: Input should be greater than 0"),
    "target above 2": ({"r_target": 2.01}, "config.r_target: Input should be less than or equal"),
    "target NaN": ({"r_target": nan}, "config.r_target: Input should be"),
    "target infinite": ({"r_target": inf}, "config.r_target: Input should be"),
    "tolerance NaN": ({"dist_tolerance": nan}, "config.dist_tolerance: Input should be"),
    "threshold 1": ({"fraud_threshold": 1}, "config.fraud_threshold: Input should be less than 1"),
    "negative height": ({"block_height": -1}, "config.block_height: Input should be greater"),
    "negative node": ({"node_id": -1}, "config.node_id: Input should be greater than or equal"),
    "node outside": ({"node_id": 2, "node_count": 2}, r"node_id 2 is not in \[0, node_count=2\)"),
    "no nodes": ({"node_count": 0}, "config.node_count: Input should be greater than or equal"),
    "batch of nothing": ({"batch_size": 0}, "config.batch_size: Input should be greater"),
    "huge batch size": ({"batch_size": 10**9}, "config.batch_size: Input should be less than"),
    "seq_len 0": ({"seq_len": 0}, "config.seq_len: Input should be greater than or equal to 1"),
    "beyond any model": ({"seq_len": 10**9}, "config.seq_len: Input should be less than or equal"),
    "margin takes all": ({"submit_margin": 1.0}, "submit_margin must be below r_target"),
    "a file as receiver": (
        {"callback_url": "file:///etc/passwd"},
        "config.callback_url: only http",
    ),
    "another scheme": ({"callback_url": "gopher://h/"}, "config.callback_url: only http"),
    "no host": ({"callback_url": "http:///path"}, "config.callback_url: a callback URL needs a ho"),
    "no port": ({"callback_url": "http://h:99999"}, "config.callback_url: Port out of range"),
    "two receivers": ({"url": "http://a", "callback_url": "http://b"}, "config.url: Extra inputs"),
    "bad alias": ({"url": "ftp://h/"}, "config.url: only http"),
    "terms of their own": ({"terms": {}}, "config.terms: Extra inputs are not permitted"),
    "our name of them": ({":terms": {}}, "config.:terms: Extra inputs are not permitted"),
}

#: The same for a batch to be validated.
BAD_BATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"distances": []}, "batch.distances: Extra inputs are not permitted"),
    "negative nonce": (
        {"nonces": [0, -1]},
        "batch.nonces.1: Input should be greater than or equal",
    ),
    "nonce too large": (
        {"nonces": [0, MAX_NONCE + 1]},
        "batch.nonces.1: Input should be less than",
    ),
    "far too large": ({"nonces": [0, 10**100]}, r"batch.nonces.1: .*\(got 1000+\.\.\.\)"),
    "text for a nonce": ({"nonces": [0, "1"]}, "batch.nonces.1: Input should be a valid integer"),
    "float for a nonce": ({"nonces": [0, 1.0]}, "batch.nonces.1: Input should be a valid integer"),
    "repeated nonce": ({"nonces": [3, 3]}, "batch: a nonce is repeated"),
    "other length": ({"dist": [0.5]}, "batch: 2 nonces but 1 distances"),
    "NaN": ({"dist": [nan, 0.5]}, "batch.dist.0: Input should be a finite number"),
    "infinite": ({"dist": [0.5, -inf]}, "batch.dist.1: Input should be a finite number"),
    "no list": ({"nonces": {"0": 1}}, "batch.nonces: Input should be a valid list"),
    "huge": (
        {"nonces": list(range(MAX_PROOF_NONCES + 1)), "dist": [0.5] * (MAX_PROOF_NONCES + 1)},
        f"batch.nonces: List should have at most {MAX_PROOF_NONCES} items",
    ),
    "negative node": ({"node_id": -1}, "batch.node_id: Input should be greater than or equal to 0"),
}

#: Whole arguments of a task that is refused, by what is wrong with them.
BAD_CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "init without config": ("poc.init", {}, "config: Field required"),
    "null config": ("poc.init", {"config": None}, "config: Input should be"),
    "config is text": ("poc.init", {"config": "{}"}, "config: Input should be"),
    "config is empty": ("poc.init", {"config": {}}, "block_hash: Field required.*r_target: Field"),
    "unknown argument": ("poc.stop", {"round": "r"}, "round: Extra inputs are not permitted"),
    "an argument called self": ("poc.stop", {"self": 1}, "self: Extra inputs are not permitted"),
    "round id with a colon": ("poc.stop", {"round_id": "a:b"}, "round_id: String should match"),
    "empty round id": ("poc.stop", {"round_id": ""}, "round_id: String should match"),
    "long round id": ("poc.init", {"config": CONFIG, "round_id": "x" * 65}, "round_id: String sho"),
    "replace is text": ("poc.init", {"config": CONFIG, "replace": "yes"}, "replace: Input should"),
    "replace nothing": ("poc.generate", {"replace": True}, "replace is for a new round"),
    "until no nonces": ("poc.generate", {"until_valid": 0}, "until_valid: Input should be greater"),
    "until half a nonce": ("poc.generate", {"until_valid": 1.5}, "until_valid: Input should be a"),
    "until too many": ("poc.generate", {"until_valid": 10**9}, "until_valid: Input should be less"),
    "for no time": ("poc.generate", {"seconds": 0}, "seconds: Input should be greater than 0"),
    "for ever": ("poc.generate", {"seconds": inf}, "seconds: Input should be"),
    "init with an end": ("poc.init", {"config": CONFIG, "seconds": 1}, "seconds: Extra inputs"),
    "cancel nothing": ("poc.cancel", {}, "validation: Field required"),
    "cancel a number": ("poc.cancel", {"validation": 7}, "validation: Input should be a valid str"),
    "batch with a round": ("poc.validate", {"batch": BATCH, "round_id": "r"}, "beside the rounds"),
    "batch is empty": ("poc.validate", {"batch": {}}, "batch.public_key: Field required"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
@pytest.mark.parametrize("task", ["poc.init", "poc.generate", "poc.validate"])
def test_a_bad_config_is_refused(task: str, name: str) -> None:
    change, message = BAD_CONFIGS[name]
    with pytest.raises(InvalidRequest, match=message):
        read(REQUESTS[task], {"config": CONFIG | change})


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_bad_batch_is_refused(name: str) -> None:
    change, message = BAD_BATCHES[name]
    with pytest.raises(InvalidRequest, match=message):
        read(ValidateRequest, {"batch": BATCH | change})


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused(name: str) -> None:
    """What is missing, unknown or does not go together is named."""
    task, arguments, message = BAD_CALLS[name]
    with pytest.raises(InvalidRequest, match=message):
        read(REQUESTS[task], arguments)
