"""The chain's API beside a participant's node ("dapi"), to which the node posts its callbacks.

It answers as the published one does, at the borders of phases too.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from enum import StrEnum
from typing import TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.requests import explain
from worker.tools.receiver import receiving

T = TypeVar("T", bound=BaseModel)

_PATH = re.compile(r"/v2/poc-batches/([^/]*)/(generated|validated)")


class Phase(StrEnum):
    """What the chain is at."""

    INFERENCE = "inference"
    GENERATE = "generate"
    #: Nobody generates any more, and what was generated is still taken.
    EXCHANGE = "exchange"
    VALIDATE = "validate"


@dataclass
class Chain:
    """What all participants agree on."""

    model: str
    phase: Phase = Phase.INFERENCE
    #: The height of the block that began the active stage.
    stage: int = 0
    #: An API that is behind the chain takes nothing.
    synced: bool = True
    #: Public keys of all participants.
    keys: set[str] = field(default_factory=set)

    @property
    def takes_artifacts(self) -> bool:
        """Whether what was generated is taken now."""
        return self.synced and self.phase in (Phase.GENERATE, Phase.EXCHANGE)

    @property
    def takes_votes(self) -> bool:
        """Whether verdicts are taken now."""
        return self.synced and self.phase == Phase.VALIDATE


class Refused(Exception):
    """An answer that is none of success."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Body(BaseModel):
    """As Go reads it: what is missing is zero, what is unknown is left out."""

    model_config = ConfigDict(strict=True, extra="ignore")

    public_key: str = ""
    block_hash: str = ""
    block_height: int = 0
    node_id: int = 0
    request_id: str = ""


class _Artifact(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    nonce: int = 0
    vector_b64: str = ""


class _Generated(_Body):
    artifacts: list[_Artifact] = []


class _Validated(_Body):
    n_total: int = 0
    n_mismatch: int = 0
    mismatch_nonces: list[int] | None = None
    p_value: float = 0.0
    fraud_detected: bool = False


class Dapi:
    """One participant's: what its node has generated, and what its owner votes."""

    def __init__(self, chain: Chain, node_ids: frozenset[int] = frozenset({0})) -> None:
        self._chain, self._node_ids = chain, node_ids
        self._lock = threading.Lock()
        #: Vectors by nonce, as the stage's store has them.
        self.artifacts: dict[int, bytes] = {}
        #: Artifacts that came although they were there.
        self.repeats = 0
        #: By the public key that is judged: how many artifacts are right, or -1.
        self.votes: dict[str, int] = {}
        #: How often each answer was given.
        self.answers: Counter[str] = Counter()

    def take(self, path: str, body: bytes) -> None:
        """A callback. Raises `Refused`."""
        found = _PATH.fullmatch(path)
        if found is None:
            raise Refused(404, "Not Found")
        read = self._generated if found[2] == "generated" else self._validated
        # A router takes one escape away, and the handler the other.
        read(body, unquote(unquote(found[1])))

    def _generated(self, body: bytes, model: str) -> None:
        batch = _read(_Generated, body)
        self._check_model(model)
        if not self._chain.takes_artifacts:
            raise Refused(503, "not in PoC generate phase")
        if batch.block_height != self._chain.stage:
            raise Refused(400, "block_height is not the active PoC stage")
        if batch.node_id not in self._node_ids:
            raise Refused(400, "unknown node_num")
        vectors = [(_int32(each.nonce), _vector(each.vector_b64)) for each in batch.artifacts]
        with self._lock:
            for nonce, vector in vectors:
                if nonce in self.artifacts:
                    self.repeats += 1
                else:
                    self.artifacts[nonce] = vector

    def _validated(self, body: bytes, model: str) -> None:
        verdict = _read(_Validated, body)
        self._check_model(model)
        if not self._chain.takes_votes:
            raise Refused(503, "not in PoC validate phase")
        if verdict.public_key not in self._chain.keys:
            raise Refused(500, "bad public key")
        right = not verdict.fraud_detected and verdict.n_total > 0
        self.votes[verdict.public_key] = verdict.n_total if right else -1

    def _check_model(self, model: str) -> None:
        if model != self._chain.model:
            raise Refused(400, "invalid model_id")

    @contextmanager
    def listening(self, host: str) -> Iterator[str]:
        """The base of its callbacks, as a node is told it, while the block runs."""
        with receiving(host, self._answer) as url:
            model = quote(quote(self._chain.model, safe=""), safe="")
            yield f"{url}/v2/poc-batches/{model}"

    def _answer(self, path: str, _: Message, body: bytes) -> tuple[int, bytes]:
        status, said, answer = 200, "OK", b""
        try:
            self.take(path, body)
        except Refused as refused:
            status, said = refused.status, str(refused)
            answer = json.dumps({"message": said}).encode()
        with self._lock:
            self.answers[f"{status} {said}"] += 1
        return status, answer


def _read(kind: type[T], body: bytes) -> T:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise Refused(400, explain(error)) from None


def _int32(nonce: int) -> int:
    """Go's cast: the lowest 32 bits."""
    return (nonce + 2**31) % 2**32 - 2**31


def _vector(text: str) -> bytes:
    try:
        vector = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "invalid base64 in artifact vector") from None
    if not vector:
        raise Refused(400, "empty artifact vector")
    return vector
