"""Evidence survives its file, and is refused as a whole where it is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import InvalidRequest
from shared.evidence import Computer, Evidence
from shared.requests import read

CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=1.0)
EVIDENCE = Evidence(
    validation="v",
    batch=ProofBatch.of(CONFIG, [0, 2**63 - 1], [0.1 + 0.2, 0.5]),
    config=CONFIG,
    proofs=[0.30000000000000004, None],
    error="why",
    computed_by=[Computer(worker="w", device="cpu", profile={"tile": "8"})],
    judged_at=1.5,
)


def test_it_survives_its_file() -> None:
    """Bit for bit, as another node reads it."""
    assert read(Evidence, json.loads(EVIDENCE.model_dump_json())) == EVIDENCE


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"proofs": [0.5]}, "2 nonces but 1 recomputed proofs"),
        ({"format": 1}, "format: Input should be 2"),
        ({"config": None}, "config: "),
        ({"other": 1}, "other: Extra inputs"),
    ],
)
def test_what_is_no_evidence_is_refused(changes: dict[str, Any], says: str) -> None:
    data = json.loads(EVIDENCE.model_dump_json()) | changes
    with pytest.raises(InvalidRequest, match=says):
        read(Evidence, data)
