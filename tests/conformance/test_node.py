"""What the network expects of a node, from outside: the steps of its HTTP contract, in order.

    pytest tests/conformance --node http://HOST:PORT

Each test names the rule. A deviation is a rule that nodes of today break, and ours does not.
docs/develop.md has the options.
"""

from __future__ import annotations

import base64
import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from controller import NEVER, NOT_NOW, Controller
from support import wait_until
from vectors import K, decoded, encoded

if TYPE_CHECKING:
    from plain_artifacts import PlainModel  # with torch: seconds that a run may not need

pytestmark = [pytest.mark.functional, pytest.mark.timeout(300)]

#: Nonces of a round that its tests wait for, and seconds that they have.
FIRST, SOON = 32, 30.0
#: Nonces that a validator takes of a participant, and how it judges them.
SAMPLE = range(200)
THRESHOLDS = {"dist_threshold": 0.4, "p_mismatch": 0.1}
#: L2 of two vectors that the same machine computed, and that two machines may differ by.
SAME, ALIKE = 0.01, 0.02
#: What a number that is none looks like.
NOT_FINITE = encoded([math.nan] * K)


@pytest.fixture
def node(controller: Controller) -> Iterator[Controller]:
    """One that does nothing, before and after."""
    controller.stop()
    controller.until("IDLE")
    yield controller
    controller.stop()


@dataclass(frozen=True)
class Round:
    """What came of one."""

    block: dict[str, Any]
    #: The lowest nonces.
    first: list[int]
    artifacts: list[tuple[int, str]]
    bodies: list[dict[str, Any]]

    @property
    def vectors(self) -> list[str]:
        """Of the first ones."""
        found = dict(self.artifacts)
        return [found[nonce] for nonce in self.first]


@pytest.fixture(scope="module")
def generated(controller: Controller) -> Round:
    """A round, until the first nonces of its sequence have come, or at least some others."""
    controller.stop()
    controller.until("IDLE")
    block, inbox = controller.block(), controller.inbox
    name, expected = block["block_hash"], set(sequence(block))
    assert controller.begin(block).status_code == 200
    try:
        with contextlib.suppress(AssertionError):  # is for the test of step 5 to say
            wait_until(lambda: expected <= {nonce for nonce, _ in inbox.taken(name)}, SOON)
    finally:
        controller.stop()
    found = inbox.taken(name)
    assert len(found) >= FIRST, f"{len(found)} artifacts came within {SOON:g} s"
    first = sorted({nonce for nonce, _ in found})[:FIRST]
    return Round(block, first, found, [post.body for post in inbox.posts(name)])


def sequence(block: dict[str, Any]) -> list[int]:
    """The first nonces of a node."""
    return [block["node_id"] + at * block["node_count"] for at in range(FIRST)]


@pytest.fixture(scope="module")
def honest(controller: Controller, generated: Round) -> list[str]:
    """The vectors of SAMPLE as the node itself computes them."""
    return controller.vectors(generated.block, SAMPLE)


def distances(some: list[str], others: list[Any]) -> list[float]:
    """The L2 of each pair; of vectors as they travel, or as numbers."""
    numbers = [decoded(each) if isinstance(each, str) else each for each in others]
    return [math.dist(decoded(a), b) for a, b in zip(some, numbers, strict=True)]


def claims(nonces: Any, vectors: list[str]) -> dict[str, Any]:
    """What a participant says, as it is sent to be judged."""
    pairs = zip(nonces, vectors, strict=True)
    return {"artifacts": [{"nonce": nonce, "vector_b64": vector} for nonce, vector in pairs]}


def with_wrong(vectors: list[str], count: int) -> list[str]:
    """The first `count` point the other way."""
    wrong = [encoded([-each for each in decoded(vector)]) for vector in vectors[:count]]
    return wrong + vectors[count:]


def judged(
    node: Controller, block: dict[str, Any], vectors: list[str], **thresholds: float
) -> dict[str, Any]:
    """The verdict on what is claimed for SAMPLE."""
    judging = {"validation": claims(SAMPLE, vectors), "stat_test": THRESHOLDS | thresholds}
    answer = node.ask(block, SAMPLE, **judging)
    assert answer.status_code == 200, answer.text
    verdict: dict[str, Any] = answer.json()
    assert verdict["n_total"] == len(SAMPLE)
    return verdict


def tail(n: int, least: int, p: float) -> float:
    """The odds of so many mismatches, or more, of an honest participant."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(least, n + 1))


def test_a_node_that_does_nothing_is_idle(node: Controller) -> None:
    """Step 1."""
    status = node.status()
    assert status["status"] == "IDLE"
    assert status.get("config") is None


def test_a_round_begins_without_a_content_type(node: Controller) -> None:
    """Step 2."""
    answer = node.begin(node.block())
    assert "content-type" not in answer.request.headers
    assert answer.status_code == 200, answer.text
    node.until("GENERATING")


def test_a_round_is_not_begun_while_one_generates(node: Controller) -> None:
    """Step 3: neither the same nor another."""
    block = node.block()
    assert node.begin(block).status_code == 200
    for other in (block, node.block()):
        refused = node.begin(other)
        assert refused.status_code == 409
        assert refused.json()["detail"] == "Already generating"


def test_a_parameter_that_is_unknown_is_refused(node: Controller) -> None:
    """Step 4."""
    block = node.block()
    answer = node.begin(block | {"params": block["params"] | {"foo": 1}})
    assert answer.status_code == 422
    assert "foo" in answer.text
    assert node.status()["status"] == "IDLE"


def test_another_model_is_refused_with_the_one_that_is_deployed(node: Controller) -> None:
    """Step 4."""
    block = node.block()
    deployed = block["params"]
    for change in ({"model": "another/model"}, {"seq_len": deployed["seq_len"] + 1}):
        answer = node.begin(block | {"params": deployed | change})
        assert answer.status_code == 409
        assert answer.json()["requested"] == deployed | change
        assert answer.json()["deployed"] == deployed
    assert node.status()["status"] == "IDLE"


def test_artifacts_come_soon_and_are_the_nodes_own(generated: Round) -> None:
    """Step 5: of its part of the nonces, from its id on, without a hole, and each once."""
    block = generated.block
    nonces = [nonce for nonce, _ in generated.artifacts]
    assert generated.first == sequence(block)
    assert {nonce % block["node_count"] for nonce in nonces} == {block["node_id"]}
    # Beyond the first ones, which are all there, other workers may have some in hand.
    assert max(nonces) < 2 * len(nonces) * block["node_count"]
    assert len(nonces) == len(set(nonces))
    for _, vector in generated.artifacts:
        assert len(base64.b64decode(vector, validate=True)) == 2 * K
        assert math.hypot(*decoded(vector)) == pytest.approx(1, abs=5e-4)
    for body in generated.bodies:
        assert body["encoding"] == {"dtype": "f16", "k_dim": K, "endian": "le"}
        for field in ("block_hash", "block_height", "public_key", "node_id"):
            assert body[field] == block[field]


def test_a_receiver_that_has_no_time_yet_gets_the_same_later(node: Controller) -> None:
    """Step 6: after three times 503 nothing is lost."""
    block, inbox = node.block(), node.inbox
    name = block["block_hash"]
    answers = [NOT_NOW] * 3
    inbox.rules[name] = lambda _: answers.pop() if answers else 200
    node.begin(block)
    wait_until(lambda: not answers, SOON, "three callbacks")
    wait_until(lambda: set(inbox.refused(name)) <= set(inbox.taken(name)), SOON, "what was refused")


@pytest.mark.deviation("it sends what is refused ten times")
def test_what_a_receiver_refuses_for_good_holds_up_nothing(node: Controller) -> None:
    """Step 7: after a 400 it is not sent again, and others are."""
    block, inbox = node.block(), node.inbox
    name, wrong = block["block_hash"], block["node_id"]

    def refuse(body: dict[str, Any]) -> Any:
        return NEVER if wrong in [each["nonce"] for each in body["artifacts"]] else 200

    inbox.rules[name] = refuse
    node.begin(block)
    wait_until(lambda: inbox.refused(name), SOON, "the callback that is refused")
    since, before = time.monotonic(), len(inbox.posts(name))
    wait_until(
        lambda: len(inbox.posts(name)) >= before + 3 and time.monotonic() > since + 3,
        SOON,
        "three more callbacks",
    )
    assert [post.status for post in inbox.posts(name)].count(400) == 1


def test_a_stop_ends_the_round(node: Controller) -> None:
    """Step 8."""
    node.begin(node.block())
    node.until("GENERATING")
    stopped = node.stop()
    assert stopped.status_code == 200
    assert stopped.json()["pow_status"] == {"status": "STOPPED"}
    assert node.until("IDLE").get("config") is None


@pytest.mark.deviation("a stop empties its buffer")
def test_a_stop_loses_nothing_that_was_computed(node: Controller) -> None:
    """Step 8: here the receiver takes nothing before the stop."""
    block, inbox = node.block(), node.inbox
    name = block["block_hash"]
    inbox.rules[name] = lambda _: NOT_NOW
    node.begin(block)
    wait_until(lambda: len(inbox.refused(name)) >= FIRST, SOON, "the first callbacks")
    counted = (node.status().get("stats") or {}).get("total_processed", 0)
    node.stop()
    refused = set(inbox.refused(name))
    del inbox.rules[name]

    def delivered() -> bool:
        taken = set(inbox.taken(name))
        return refused <= taken and len(taken) >= counted

    wait_until(delivered, 2 * SOON, f"{max(counted, len(refused))} artifacts")


def test_a_stop_of_what_has_stopped_is_one_too(node: Controller) -> None:
    """Step 9."""
    for _ in range(2):
        assert node.stop().status_code == 200


def test_vectors_that_are_asked_for_are_those_of_the_round(
    node: Controller, generated: Round
) -> None:
    """Step 10: but for float16's last bits."""
    again = node.vectors(generated.block, generated.first)
    assert max(distances(again, generated.vectors)) < SAME


def test_what_is_right_is_no_fraud(node: Controller, generated: Round, honest: list[str]) -> None:
    """Step 11."""
    verdict = judged(node, generated.block, honest)
    assert (verdict["n_mismatch"], verdict["mismatch_nonces"]) == (0, [])
    assert verdict["p_value"] == pytest.approx(1)
    assert verdict["fraud_detected"] is False


def test_vectors_of_other_nonces_are_fraud(
    node: Controller, generated: Round, honest: list[str]
) -> None:
    """Step 11."""
    verdict = judged(node, generated.block, honest[1:] + honest[:1])
    assert verdict["n_mismatch"] > len(SAMPLE) / 2
    assert verdict["fraud_detected"] is True


@pytest.mark.parametrize(("threshold", "fraud"), [(0.05, True), (0.01, False)])
def test_how_many_may_be_wrong_depends_on_the_threshold(
    node: Controller, generated: Round, honest: list[str], threshold: float, fraud: bool
) -> None:
    """Step 11: 30 of 200, with one in ten allowed."""
    claimed = with_wrong(honest, 30)
    verdict = judged(node, generated.block, claimed, fraud_threshold=threshold)
    assert verdict["mismatch_nonces"] == list(SAMPLE)[:30]
    assert verdict["p_value"] == pytest.approx(tail(200, 30, 0.1), rel=1e-6)
    assert verdict["fraud_detected"] is fraud


def test_claims_are_for_the_nonces_that_are_asked_for(node: Controller, generated: Round) -> None:
    """Step 12."""
    for others in (generated.first[1:], [*generated.first[1:], generated.first[-1] + 1]):
        claimed = claims(others, generated.vectors[: len(others)])
        refused = node.ask(generated.block, generated.first, validation=claimed)
        assert refused.status_code == 400
        assert refused.json()["detail"] == "validation.artifacts nonces must match nonces field"


@pytest.mark.deviation("it knows no p_value_threshold, and judges at 0.01")
def test_claims_are_judged_by_the_threshold_that_the_network_sends(
    node: Controller, generated: Round, honest: list[str]
) -> None:
    """Step 13: the controller's `p_value_threshold`, against the nodes' `fraud_threshold`."""
    claimed = with_wrong(honest, 29)
    theirs = judged(node, generated.block, claimed, fraud_threshold=0.01)
    ours = judged(node, generated.block, claimed, p_value_threshold=0.05)
    assert theirs["n_mismatch"] == ours["n_mismatch"] == 29
    assert (theirs["fraud_detected"], ours["fraud_detected"]) == (False, True)


def test_a_job_can_be_asked_for_until_it_has_ended(node: Controller, generated: Round) -> None:
    """Step 14."""
    answer = node.ask(generated.block, generated.first, wait=False)
    queued = answer.json()
    assert (queued["status"], queued["queued_count"]) == ("queued", FIRST)
    job = queued["request_id"]

    def ended() -> Any:
        stands = node.job(job).json()
        assert stands["status"] in ("queued", "running", "completed")
        return stands["status"] == "completed" and stands

    done = wait_until(ended, SOON, "its end", every=0.05)
    found = {each["nonce"]: each["vector_b64"] for each in done["artifacts"]}
    again = [found[nonce] for nonce in generated.first]
    assert max(distances(again, generated.vectors)) < SAME


def test_a_verdict_comes_by_callback(node: Controller, generated: Round, honest: list[str]) -> None:
    """Step 14: nobody asks for it, and each is told which job it is of."""
    judging = {"validation": claims(SAMPLE, honest), "stat_test": THRESHOLDS}
    job = node.ask(generated.block, SAMPLE, wait=False, **judging).json()["request_id"]
    name = generated.block["block_hash"]

    def verdict() -> list[dict[str, Any]]:
        posts = node.inbox.posts(name, "validated")
        return [post.body for post in posts if post.body["request_id"] == job]

    told = wait_until(verdict, SOON, "the verdict")[0]
    assert (told["n_total"], told["n_mismatch"]) == (len(SAMPLE), 0)
    assert told["fraud_detected"] is False
    assert told["mismatch_nonces"] == []


def test_a_job_that_nobody_has_given_is_unknown(node: Controller, generated: Round) -> None:
    """Step 14."""
    known = node.ask(generated.block, generated.first[:1]).json()["request_id"]
    unknown = known[:-1] + ("0" if known[-1] != "0" else "1")
    assert node.job(known).status_code == 200
    assert node.job(unknown).status_code == 404


def test_a_job_that_is_too_large_is_refused_for_now(node: Controller) -> None:
    """Step 15."""
    assert node.ask(node.block(), range(100_001), wait=False).status_code == 429


def test_vectors_that_are_none_are_mismatches(node: Controller, generated: Round) -> None:
    """Step 16: numbers that are none, and too few of them."""
    short = encoded(decoded(generated.vectors[1])[:-1])
    claimed = claims(generated.first, [NOT_FINITE, short, *generated.vectors[2:]])
    verdict = node.ask(generated.block, generated.first, validation=claimed).json()
    assert verdict["mismatch_nonces"] == generated.first[:2]
    assert verdict["n_total"] == FIRST


def test_claims_that_are_no_base64_are_not_judged(node: Controller, generated: Round) -> None:
    """Step 16: the job is refused, or fails."""
    claimed = claims(generated.first, ["%%%", *generated.vectors[1:]])
    answer = node.ask(generated.block, generated.first, wait=False, validation=claimed)
    if answer.status_code == 200:
        job = answer.json()["request_id"]
        wait_until(lambda: node.job(job).json()["status"] == "failed", SOON, "its failure")
    else:
        assert answer.status_code == 400


def test_the_stronger_generator_gives_other_vectors(node: Controller, generated: Round) -> None:
    """Step 17."""
    strong = node.vectors(generated.block, generated.first, poc_stronger_rng=True)
    assert min(distances(strong, generated.vectors)) > 2 * ALIKE


@pytest.mark.parametrize("strong", [False, True], ids=["usual", "stronger"])
def test_vectors_are_those_of_the_model(
    node: Controller, generated: Round, plain: PlainModel, strong: bool
) -> None:
    """Step 17: of an independent computation, with both generators."""
    block, nonces = generated.block, generated.first
    found = node.vectors(block, nonces, poc_stronger_rng=strong)
    right = plain.vectors(
        block["block_hash"], block["public_key"], nonces, node.seq_len, strong_rng=strong
    )
    assert max(distances(found, right)) < ALIKE
