"""A message is frozen as it is told, and only for those who want to know."""

from __future__ import annotations

import json

from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.errors import CouldNotCompute
from shared.schemes import Proof
from shared.schemes.artifact import ArtifactBatch, ArtifactTerms
from shared.store import Claim, ComputedValidation
from worker.callbacks.messages import generated_message, validated_message

CONFIG = PoCConfig(
    block_hash="b10c",
    block_height=7,
    public_key="node",
    r_target=1.4,
    callback_url="http://controller:9/poc/",
    callback_deadline_s=60,
)
SILENT = CONFIG.model_copy(update={"callback_url": None})
BATCH = ProofBatch.of(CONFIG, [1, 2**62], [0.1, 1 / 3])


def claim(config: PoCConfig = CONFIG) -> Claim:
    return Claim("tok", "r1", "epoch", config, start=0, count=4, attempts=0)


def job(config: PoCConfig = CONFIG, id: str = "task-1") -> ComputedValidation:
    return ComputedValidation(id, "r1", BATCH, config, proofs=[0.1, None], error="", profile="")


def test_a_generated_message_is_a_proof_batch_that_reads_back_equal() -> None:
    """Nonces and distances are the very numbers that were committed."""
    message = generated_message(claim(), [(1, 0.1), (2**62, 1 / 3)])
    assert message
    assert message.url == "http://controller:9/poc/generated"
    assert ProofBatch.model_validate_json(message.body) == BATCH
    assert (message.key, message.round, message.deadline_s) == ("r1:tok", "r1", 60)


def test_a_claim_without_valid_nonces_is_no_message() -> None:
    assert generated_message(claim(), []) is None


def test_without_a_callback_url_nothing_is_told() -> None:
    assert generated_message(claim(SILENT), [(1, 0.1)]) is None
    assert validated_message(job(SILENT), CouldNotCompute("no")) is None


def test_a_verdict_is_told_as_it_is() -> None:
    verdict = ValidatedBatch.judge(BATCH, [0.1, 0.3], CONFIG)
    message = validated_message(job(), verdict)
    assert message
    assert message.url == "http://controller:9/poc/validated"
    assert ValidatedBatch.model_validate_json(message.body) == verdict
    assert (message.key, message.round, message.deadline_s) == ("validation:task-1", "r1", 60)


def test_a_validation_without_a_verdict_tells_the_error_and_what_it_was_about() -> None:
    """No verdict field is there, so nobody can take it for one."""
    message = validated_message(job(), CouldNotCompute("no finite numbers"), [2**62])
    assert message
    assert message.url.endswith("/validated")
    assert json.loads(message.body) == {
        "error": "CouldNotCompute",
        "message": "no finite numbers",
        "public_key": "node",
        "block_hash": "b10c",
        "block_height": 7,
        "nonces": [1, 2**62],
        "node_id": 0,
        "not_computed": [2**62],
    }


def test_a_task_id_of_any_text_makes_a_key_that_a_header_can_carry() -> None:
    message = validated_message(job(id="a b\r\nX: ü"), CouldNotCompute("no"))
    assert message
    assert message.key == "validation:a%20b%0D%0AX:%20%C3%BC"


ASKED = ArtifactBatch(
    block_hash="b10c", block_height=7, public_key="other", nonces=[4, 9], node_id=2
)
VECTORS = PoCConfig(
    block_hash="b10c",
    block_height=7,
    public_key="node",
    terms=ArtifactTerms(),
    callback_url="http://controller:9/v2/poc-batches/Qwen%252FQwen3",
)
VECTOR = "iLWqtgUw2zJTr46x+bB0N7exkjhAqhej"


def artifact_job(batch: ArtifactBatch = ASKED) -> ComputedValidation:
    proofs: list[Proof | None] = [VECTOR, None]
    return ComputedValidation("task-1", "", batch, VECTORS, proofs, error="", profile="")


def test_vectors_that_were_asked_for_are_told_as_generated_ones_with_the_id_of_the_job() -> None:
    """But those that could not be computed. The path keeps its double escapes."""
    verdict = ArtifactTerms(k_dim=12).judge(ASKED, [VECTOR, VECTOR])
    partly = verdict.model_copy(update={"vectors": [VECTOR, None]})
    message = validated_message(artifact_job(), partly)
    assert message
    assert message.url == "http://controller:9/v2/poc-batches/Qwen%252FQwen3/generated"
    assert json.loads(message.body) == {
        "public_key": "other",
        "block_hash": "b10c",
        "block_height": 7,
        "node_id": 2,
        "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
        "request_id": "task-1",
        "artifacts": [{"nonce": 4, "vector_b64": VECTOR}],
    }


def test_a_verdict_on_vectors_has_the_id_of_the_job() -> None:
    claimed = ASKED.model_copy(update={"vectors": [VECTOR, VECTOR]})
    verdict = ArtifactTerms().judge(claimed, [VECTOR, VECTOR])
    message = validated_message(artifact_job(claimed), verdict)
    assert message
    assert message.url.endswith("/validated")
    told = json.loads(message.body)
    assert (told["request_id"], told["n_total"], told["node_id"]) == ("task-1", 2, 2)


def test_a_job_without_a_verdict_is_told_as_what_no_receiver_takes_for_one() -> None:
    """The network's reads a number there, and counts a missing one against the node."""
    message = validated_message(artifact_job(), CouldNotCompute("no"), [4, 9])
    assert message
    told = json.loads(message.body)
    assert (told["error"], told["request_id"]) == ("CouldNotCompute", "task-1")
    assert told["n_total"] == "not computed"
