"""What must hold after every run, asked of Redis and of what others saw.

Everything is checked over what Redis holds now, so that it has to hold after a loss, too. The
fake engine gives the same distance everywhere, so a recount of the nonce space is exact.
"""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections import Counter
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

import redis

from fake_engine import fake_distance
from faults.receiver import Received
from shared.config import PoCConfig
from shared.store.keys import KEYS, Keys

#: Every so many nonces there is none with a finite distance, whoever computes it.
NAN_EVERY = 101

#: Fields of a round that deliveries change, whatever its state.
DELIVERY = ("callbacks_pending", "callbacks_delivered", "callbacks_refused", "callback_error")

#: Keys of a namespace that may stay for as long as it is there. Those of the current round and of
#: open validations come on top; everything else must be empty or have a time to live.
STAYING = (
    "status", "clock", "kept", "outbox", "callbacks", "totals", "outcomes", "workers", "takers",
    "schemes",
)  # fmt: skip
OF_CURRENT_ROUND = (
    "round", "nonces", "found", "run", "history", "histogram", "claims", "leases",
)  # fmt: skip
#: Celery's own: bindings of queues.
CELERY_KEYS = re.compile(r"_kombu\..*")


class Broken(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant, self.detail = invariant, detail

    @classmethod
    def of(cls, error: Exception) -> Broken:
        """What `error` tells: itself, or a defect of the harness, which has to end a run, too."""
        if isinstance(error, cls):
            return error
        return cls("the harness works", "".join(traceback.format_exception(error)))


def demand(holds: object, invariant: str, detail: str) -> None:
    """Raise `Broken` unless it `holds`."""
    if not holds:
        raise Broken(invariant, detail)


def distance(block_hash: str, public_key: str, nonce: int) -> float:
    """What every engine of a run gives."""
    return nan if nonce % NAN_EVERY == 0 else fake_distance(block_hash, public_key, nonce)


@dataclass
class Recount:
    """A round as a recount of its nonce space found it."""

    round_id: str
    batches: int = 0
    checked: int = 0
    failed: int = 0
    given_up: int = 0
    #: Positions that were under way when another round took its place.
    open: int = 0
    valid: dict[int, float] = field(default_factory=dict)


def check_round(
    direct: redis.Redis, keys: Keys, round_id: str, most_left: int = 0
) -> Recount | None:
    """Is each nonce of the sequence counted once? None when Redis has no such round.

    A round whose place another has taken keeps no claims: up to `most_left` batches may then have
    been under way at its end.
    """
    with direct.pipeline(transaction=True) as pipe:  # at one moment
        for name in ("round", "run", "nonces"):
            pipe.hgetall(keys(name, round_id))
        pipe.lrange(keys("found", round_id), 0, -1)
        pipe.hvals(keys("claims", round_id))
        fields, run, nonces, found, claims = pipe.execute()
    if not fields:
        return None
    config = PoCConfig.model_validate_json(run["config"])
    where = f"round {round_id} ({config.block_hash}, batches of {config.batch_size})"
    once = "each nonce is counted once"
    twice = sorted(nonce for nonce, times in Counter(found).items() if times > 1)
    demand(not twice, once, f"{where} found nonces twice: {twice[:5]}")
    unlike = sorted(set(found) ^ nonces.keys())
    demand(not unlike, once, f"{where}: in one of list and hash of nonces only: {unlike[:5]}")

    size, cursor = config.batch_size, int(run["cursor"])
    still_open = _open_batches([json.loads(claim) for claim in claims], size, cursor, where)
    told = {int(nonce): float(dist) for nonce, dist in nonces.items()}
    recount = Recount(round_id)
    unsure = 0  # finite distances in batches that may have been given up, since none is valid
    for start in range(0, cursor, size):
        batch = config.nonces(start, size)
        kept = {n: told.pop(n) for n in batch if n in told}
        if start in still_open:
            has = f"positions {start} on are open, yet nonces of them count: {sorted(kept)[:5]}"
            demand(not kept, once, f"{where}: {has}")
            continue
        dist = {n: distance(config.block_hash, config.public_key, n) for n in batch}
        expected = {n: d for n, d in dist.items() if config.terms.counts(d)}
        failed = sum(map(isnan, dist.values()))
        recount.batches += 1
        if expected and not kept:
            recount.given_up += size
            continue
        demand(
            kept == expected,
            "every valid nonce is there with the engine's distance",
            f"{where}, positions {start} on: {_difference(kept, expected)}",
        )
        recount.valid |= expected
        recount.checked += size - failed
        recount.failed += failed
        if not expected:
            unsure += size - failed
    demand(not told, once, f"{where} has nonces that nobody computed: {sorted(told)[:5]}")
    _check_totals(fields, recount, unsure, most_left * size, where)
    return recount


def _open_batches(claims: list[dict[str, Any]], size: int, cursor: int, where: str) -> set[int]:
    starts = [int(claim["start"]) for claim in claims]
    demand(
        len(starts) == len(set(starts))
        and all(start % size == 0 and start < cursor for start in starts)
        and all(int(claim["count"]) == size for claim in claims),
        "claims do not overlap",
        f"{where} has claims at {sorted(starts)}, its cursor is at {cursor}",
    )
    return set(starts)


def _check_totals(
    fields: dict[str, str], recount: Recount, unsure: int, most_left: int, where: str
) -> None:
    checked, failed, valid = (int(fields[f"total_{n}"]) for n in ("checked", "failed", "valid"))
    counts = "total_checked and total_valid equal a recount"
    found = len(recount.valid)
    demand(valid == found, counts, f"{where}: total_valid is {valid}, a recount finds {found}")
    handed_out = recount.checked + recount.failed + recount.given_up
    uncounted = handed_out - checked - failed
    told = (
        f"; total_checked is {checked} and total_failed {failed}, of {handed_out} positions that "
        "were handed out and are not open any more"
    )
    demand(
        uncounted >= 0,
        counts,
        f"{where}: {-uncounted} positions too many are counted: a batch counted twice, or counts "
        f"and is still open{told}",
    )
    demand(
        uncounted <= most_left,
        counts,
        f"{where}: {uncounted} positions are neither counted nor open, where at most {most_left} "
        f"may be: what was claimed was lost{told}",
    )
    # Nothing is kept of batches that were given up, but that they are counted as failed.
    more = recount.checked - checked
    demand(
        0 <= more <= unsure,
        counts,
        f"{where}: {abs(more)} nonces too {'few' if more > 0 else 'many'} count as checked, and as "
        f"many too {'many' if more > 0 else 'few'} as failed{told}",
    )
    recount.checked, recount.given_up, recount.open = checked, failed - recount.failed, uncounted
    demand(
        fields["error"] or not failed,
        "what failed is shown",
        f"{where}: {failed} nonces failed, and its error is empty",
    )


def _difference(kept: dict[int, float], expected: dict[int, float]) -> str:
    return (
        f"missing {sorted(expected.keys() - kept)[:5]}, "
        f"not valid {sorted(kept.keys() - expected)[:5]}, "
        f"another distance {[n for n in expected if n in kept and kept[n] != expected[n]][:5]}"
    )


def picture(direct: redis.Redis, keys: Keys, round_id: str) -> dict[str, str] | None:
    """All of a round that may not change any more once it is over; None when it is gone."""
    with direct.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys("round", round_id))
        pipe.hgetall(keys("run", round_id))
        pipe.hgetall(keys("nonces", round_id))
        pipe.lrange(keys("found", round_id), 0, -1)
        fields, run, nonces, found = pipe.execute()
    if not fields:
        return None
    kept = {
        name: value
        for name, value in fields.items()
        if name not in DELIVERY and not name.startswith("refused:")
    }
    kept |= {f"run.{name}": value for name, value in run.items()}
    content = json.dumps([sorted(nonces.items()), found]).encode()
    return kept | {"nonces": hashlib.sha256(content).hexdigest()}


def check_same(before: dict[str, str], now: dict[str, str], round_id: str, why: str) -> None:
    """A round that is over does not change, except for its deliveries."""
    changed = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    demand(
        not changed,
        "nothing changes in a round that is over",
        f"round {round_id}, {why}: "
        + ", ".join(f"{n} was {before.get(n)!r}, is {now.get(n)!r}" for n in changed),
    )


def check_callbacks(
    direct: redis.Redis,
    keys: Keys,
    recount: Recount,
    got: dict[str, Received],
    redirected: set[str],
    *,
    nothing_lost: bool,
) -> None:
    """Was every valid nonce of a round told, and can a repeat be known?

    `got` is what came to the round's URL, `redirected` the keys that were sent elsewhere. After a
    loss, nonces that were computed again were told again, under another key.
    """
    where = f"round {recount.round_id}"
    fields = direct.hgetall(keys("round", recount.round_id))
    delivered, refused, pending = (
        int(fields[f"callbacks_{name}"]) for name in ("delivered", "refused", "pending")
    )
    told = "every callback is delivered at least once"
    waiting = direct.xlen(keys("outbox"))
    what = f"{pending} callbacks count as pending, the outbox has {waiting} messages of all rounds"
    demand(pending == 0, told, f"{where}: {what}")
    seen: dict[int, list[str]] = {}
    for key, each in got.items():
        demand(
            not each.others, "a repeat has the same body", f"{where}: {key} came with two bodies"
        )
        for nonce, dist in zip(each.body["nonces"], each.body["dist"], strict=True):
            right = distance(each.body["block_hash"], each.body["public_key"], nonce)
            demand(dist == right, told, f"{where}: {nonce} was told with {dist}, not {right}")
            seen.setdefault(nonce, []).append(key)
    if redirected:
        demand(
            (refused == len(redirected) and not delivered) or not nothing_lost,
            told,
            f"{where}: {len(redirected)} were redirected, {refused} count as refused",
        )
        return
    untold = recount.valid.keys() - seen
    demand(not untold, told, f"{where}: {len(untold)} nonces never, first {sorted(untold)[:3]}")
    if nothing_lost:
        demand(
            delivered == len(got) and not refused,
            told,
            f"{where}: {len(got)} came, {delivered} count as delivered and {refused} as refused",
        )
        twice = [nonce for nonce, found in seen.items() if len(found) > 1]
        demand(
            not twice and seen.keys() == recount.valid.keys(),
            "a repeat can be told from news",
            f"{where}: under two keys {sorted(twice)[:3]}, "
            f"not valid {sorted(seen.keys() - recount.valid.keys())[:3]}",
        )


def check_keys(direct: redis.Redis, namespace: str, queue: str) -> int:
    """Has every key an owner, or a time to live? Gives how many keys there are."""
    keys = Keys(namespace)
    current = direct.hget(keys("status"), "round_id") or ""
    allowed = {keys(name) for name in STAYING} | {queue}
    if current:
        allowed |= {keys(name, current) for name in OF_CURRENT_ROUND}
    found = list(direct.scan_iter(count=1000))
    with direct.pipeline(transaction=False) as pipe:
        for key in found:
            pipe.pttl(key)
        lives = pipe.execute()
    for key, ttl in zip(found, lives, strict=True):
        known = key in allowed or CELERY_KEYS.fullmatch(key)
        demand(ttl != -1 or known, "no key is left without owner or time to live", key)
        if key.startswith(keys.prefix):
            name = key.removeprefix(keys.prefix).partition(":")[0]
            demand(name in KEYS, "no key is left without owner or time to live", f"{key} is none")
    return len(found)
