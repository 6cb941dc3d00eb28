"""An epoch: nodes generate, judge each other, and the votes say who is paid.

    init ─▶ generate ─▶ stop ─▶ exchange ─▶ validate ─▶ votes
         503, 400          503           503

Below are the answers with which the APIs refuse callbacks for a moment, since they learn of a phase
at another time than the nodes do.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from struct import unpack

from shared.errors import PoCError
from shared.schemes.artifact import K_DIM
from worker.tools.network.dapi import Chain, Dapi, Phase
from worker.tools.network.node import Node
from worker.tools.network.sampling import sample
from worker.tools.stage import say, signs_of_life

#: What the published controller has: artifacts that are judged, and what they are judged by.
SAMPLE_SIZE = 200
STAT_TEST = {"dist_threshold": 0.4, "p_mismatch": 0.1, "p_value_threshold": 0.05}
#: The same: max(nonce) / count from which a participant is refused.
POROSITY_LIMIT = 100.0
#: The same: how often a job is sent again, after which seconds, and how many go out at a time.
RETRIES = 25
FIRST_PAUSE_S, PAUSE_GROWS, LONGEST_PAUSE_S = 3.0, 1.5, 45.0
VALIDATORS = 10

#: Seconds for which the APIs are not in a phase in which the nodes are already.
BORDER_S = 2.0
#: The longest that the exchange and the validation take; they end when all has come.
EXCHANGE_S, VALIDATION_S = 60.0, 600.0
#: Seconds without a callback after which nothing more is expected of a node that does not say how
#: much it has computed.
QUIET_S = 5.0


class Participant:
    """Somebody with a node, an API of the chain, and a key."""

    def __init__(self, name: str, node: Node, chain: Chain, *, cheats: bool = False) -> None:
        self.name, self.cheats = name, cheats
        self.node, self.dapi = node, Dapi(chain)
        # Of the form of a compressed secp256k1 key.
        self.public_key = "02" + sha256(secrets.token_bytes(16)).hexdigest().upper()
        chain.keys.add(self.public_key)
        self.failed = False
        #: Where its node posts callbacks, once it takes part.
        self.callbacks = ""

    @contextmanager
    def taking_part(self, host: str) -> Iterator[None]:
        """Its API listens while the block runs, on an address that its node reaches."""
        with self.dapi.listening(host) as self.callbacks:
            yield


@dataclass(frozen=True)
class Outcome:
    """What became of one participant."""

    name: str
    url: str
    public_key: str
    cheats: bool
    #: Artifacts in its API's store, how many its node says it has, and how many came again.
    artifacts: int
    computed: int | None
    repeats: int
    max_nonce: int
    votes_for: int
    votes_against: int
    paid: bool

    @property
    def porosity(self) -> float:
        """What validators look at: the largest nonce for each artifact."""
        return self.max_nonce / self.artifacts if self.artifacts else 0.0

    @property
    def holes(self) -> float:
        """The share of its nonces, up to the largest, that are not there."""
        return 1 - self.artifacts / max(self.artifacts, self.max_nonce + 1)

    @property
    def as_it_must(self) -> bool:
        """Paid if and only if it is honest; nothing lost, and no large holes."""
        exact = self.computed in (None, self.artifacts) and self.artifacts > 0
        return exact and self.holes <= 0.01 and self.paid != self.cheats


class Epoch:
    """One epoch of these participants."""

    def __init__(self, chain: Chain, participants: Sequence[Participant], seq_len: int) -> None:
        self._chain, self._all = chain, participants
        self.block_hash = secrets.token_hex(32).upper()
        self.height = chain.stage + 1000
        # Each participant has one node, whose number is 0.
        self._round = {
            "block_hash": self.block_hash,
            "block_height": self.height,
            "node_id": 0,
            "node_count": 1,
            "params": {"model": chain.model, "seq_len": seq_len},
        }

    def run(self, generate: Callable[[], None]) -> list[Outcome]:
        """What comes of it; the nodes generate until `generate` returns."""
        chain = self._chain
        say(f"block {self.height}: init on {len(self._all)} nodes")
        for each in self._all:
            self._begin(each)
        time.sleep(BORDER_S)
        chain.phase = Phase.GENERATE
        time.sleep(BORDER_S)
        chain.stage = self.height
        generate()
        say("stopping, and taking what is still to come")
        for each in self._working():
            self._stop(each)
        chain.synced = False
        time.sleep(BORDER_S)
        chain.phase, chain.synced = Phase.EXCHANGE, True
        with signs_of_life("waiting for what was generated"):
            computed = self._exchange()
        say(f"validating: each judges {SAMPLE_SIZE} artifacts of all, its own among them")
        with signs_of_life("waiting for verdicts"):
            self._validate()
        chain.phase = Phase.INFERENCE
        return [self._outcome(each, computed[each.name]) for each in self._all]

    def _begin(self, who: Participant) -> None:
        try:
            body = {"public_key": who.public_key, "url": who.callbacks}
            who.node.begin(self._round | body)
        except PoCError as error:
            say(f"{who.name} has failed: {error}")
            who.failed = True

    def _stop(self, who: Participant) -> None:
        try:
            who.node.stop()
        except PoCError as error:
            say(f"{who.name} was not stopped: {error}")

    def _working(self) -> list[Participant]:
        return [each for each in self._all if not each.failed]

    def _exchange(self) -> dict[str, int | None]:
        """Wait for what was generated; how many artifacts each node says it has."""
        computed = {each.name: each.node.computed(self.block_hash) for each in self._all}

        def stored() -> dict[str, int]:
            return {each.name: len(each.dapi.artifacts) for each in self._all}

        before, quiet_since = stored(), time.monotonic()
        until = quiet_since + EXCHANGE_S
        while (now := time.monotonic()) < until:
            have = stored()
            if have != before:
                before, quiet_since = have, now
            quiet = now > quiet_since + QUIET_S
            if all(quiet if n is None else have[name] >= n for name, n in computed.items()):
                break
            time.sleep(0.1)
        return computed

    def _validate(self) -> None:
        """Hand the jobs over while the APIs are not yet in the phase, then wait for all votes."""
        until = time.monotonic() + VALIDATION_S
        judged = [each for each in self._working() if each.dapi.artifacts]
        pairs = [(judge, each) for judge in self._working() for each in judged]
        fresh = secrets.token_hex(32).upper()
        with ThreadPoolExecutor(VALIDATORS * len(self._all)) as pool:
            sent = [pool.submit(self._judge, judge, each, fresh, until) for judge, each in pairs]
            time.sleep(BORDER_S)
            self._chain.phase = Phase.VALIDATE
            expected = [pair for pair, each in zip(pairs, sent, strict=True) if each.result()]
        while time.monotonic() < until:
            if all(each.public_key in judge.dapi.votes for judge, each in expected):
                return
            time.sleep(0.1)

    def _judge(self, judge: Participant, judged: Participant, fresh: str, until: float) -> bool:
        """See that a participant is judged; whether a vote is to come."""
        store = judged.dapi.artifacts
        nonces = sorted(store)
        positions = sample(
            len(nonces),
            SAMPLE_SIZE,
            validator=judge.public_key,
            block_hash=fresh,
            height=self.height,
            model=self._chain.model,
        )
        claims = {nonces[at]: store[nonces[at]] for at in positions}
        if why := refusal_of(claims, len(nonces)):
            say(f"{judge.name} votes against {judged.name}: {why}")
            judge.dapi.votes[judged.public_key] = -1
            return True
        artifacts = [
            {"nonce": nonce, "vector_b64": base64.b64encode(vector).decode()}
            for nonce, vector in claims.items()
        ]
        body = self._round | {
            "public_key": judged.public_key,
            "nonces": list(claims),
            "url": judge.callbacks,
            "validation": {"artifacts": artifacts},
            "stat_test": STAT_TEST,
        }
        for attempt in range(RETRIES + 1):
            try:
                judge.node.generate(body)
                return True
            except PoCError as error:
                if time.monotonic() + pause(attempt) > until:
                    break
                say(f"{judge.name} tries again: {error}")
                time.sleep(pause(attempt))
        say(f"{judge.name} abstains: its node took no job")
        return False

    def _outcome(self, who: Participant, computed: int | None) -> Outcome:
        cast = [each.dapi.votes.get(who.public_key) for each in self._all]
        votes_for = sum(vote is not None and vote > 0 for vote in cast)
        votes_against = sum(vote is not None and vote <= 0 for vote in cast)
        return Outcome(
            name=who.name,
            url=who.node.url,
            public_key=who.public_key,
            cheats=who.cheats,
            artifacts=len(who.dapi.artifacts),
            computed=computed,
            repeats=who.dapi.repeats,
            max_nonce=max(who.dapi.artifacts, default=0),
            votes_for=votes_for,
            votes_against=votes_against,
            paid=is_paid(votes_for, len(self._all)),
        )


def refusal_of(claims: dict[int, bytes], count: int) -> str | None:
    """Why the controller votes against artifacts without asking a node; None if it asks."""
    for nonce, vector in claims.items():
        if nonce < 0:
            return f"nonce {nonce} is none that a node can compute"
        if len(vector) != 2 * K_DIM:
            return f"the vector of nonce {nonce} has {len(vector)} bytes"
        if not all(map(isfinite, unpack(f"<{K_DIM}e", vector))):
            return f"the vector of nonce {nonce} has a number that is none"
    porosity = max(claims) / count
    return f"porosity {porosity:g}" if porosity >= POROSITY_LIMIT else None


def pause(attempt: int) -> float:
    """Seconds until a job that could not be handed over is sent again."""
    return min(FIRST_PAUSE_S * PAUSE_GROWS**attempt, LONGEST_PAUSE_S)


def is_paid(votes_for: int, voters: int) -> bool:
    """More than half of all who may vote are for it; all have the same power here."""
    return 2 * votes_for > voters
