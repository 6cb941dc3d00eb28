"""The head of each Lua script says what it touches, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
import redis

from chunks import claim_chunk
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import CouldNotCompute
from shared.requests import GenerateRequest, InitRequest, StopRequest, ValidateRequest
from shared.settings import load_settings
from shared.store import Ask, Computed, Message, Store, fresh_id
from shared.store.commands import OF_THE_DEAD
from shared.store.keys import KEYS, Keys
from shared.store.verbs import VERBS, Verb

verbs = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


def own_code(verb: Verb) -> str:
    """A script without its head and without what stands before it."""
    return verb.source.rpartition("\n-- A: ")[2].partition("\n\n")[2]


@verbs
def test_a_head_declares_keys_of_the_table(verb: Verb) -> None:
    """With an id where the family has one, which is an argument."""
    assert verb.keys
    for use in verb.keys:
        assert bool(KEYS[use.family].per) == bool(use.of)
        assert not use.otherwise or not KEYS[use.otherwise].per
        assert not use.of or use.of in verb.required | verb.optional


@verbs
def test_a_script_names_no_key_and_no_argument_that_its_head_lacks(verb: Verb) -> None:
    """What it lacks is nil there, at best in a test; `verb` and `wake` are in each call."""
    named = set(re.findall(r"\bK\.(\w+)", own_code(verb)))
    assert named - {use.alias for use in verb.keys} == set()
    named = set(re.findall(r"\bA\.(\w+)", own_code(verb)))
    assert named - verb.required - verb.optional - {"verb", "wake"} == set()


@verbs
def test_a_head_declares_nothing_that_its_script_never_names(verb: Verb) -> None:
    """Nor the functions before it, which take the keys of a new round by their names."""
    named = set(re.findall(r"\bK\.(\w+)", verb.source))
    if "open_round()" in own_code(verb):
        named |= {use.alias for use in verb.keys if use.alias.startswith("new_")}
    assert {use.alias for use in verb.keys} - named == set()
    named = set(re.findall(r"\bA\.(\w+)", verb.source))
    named |= {use.of for use in verb.keys}
    assert (verb.required | verb.optional) - named == set()


def test_a_call_with_other_arguments_than_the_head_has_is_a_mistake_of_ours() -> None:
    """One too many, or one too few."""
    leave = VERBS["leave"]
    leave.check({"worker": "w"})
    for wrong in ({}, {"worker": "w", "token": "t"}):
        with pytest.raises(TypeError, match=r"leave\.lua: its head and a call differ"):
            leave.check(wrong)


@pytest.mark.functional
def test_each_script_writes_what_its_head_says(redis_url: str) -> None:
    """As a server tells that is asked to show all it does: in a history with every verb."""
    settings = load_settings({}, redis_url=redis_url, namespace="n", max_attempts=1, max_valid=2)
    with redis.Redis.from_url(redis_url) as client, client.monitor() as monitor:
        store = Store(settings)
        history(store, client)
        store.close()
        client.echo("the end")
        client.flushall()  # they are not of the namespace whose keys are checked
        written = dict.fromkeys(VERBS, frozenset[str]())
        for verb, family in writes(iter(monitor.next_command, None)):
            written[verb] |= {family}
    assert written == {name: verb.writes for name, verb in VERBS.items()}


READING = {
    "ECHO", "EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HMGET", "LLEN", "LRANGE", "PUBLISH",
    "SISMEMBER", "SMEMBERS", "TIME", "TYPE", "XRANGE", "ZCARD", "ZRANGE", "ZRANGEBYSCORE", "ZSCORE",
}  # fmt: skip


#: Keys that are not called as the others are.
OTHERS = {Keys("n")("result", "task"): "result", Keys("n")("queue", "n"): "queue"}


def writes(commands: Iterator[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Each write of a script: its verb, and the family of the key."""
    verb = ""
    for each in commands:
        if each["command"] == "ECHO the end":
            return
        name, _, rest = each["command"].partition(" ")
        if each["client_type"] != "lua":
            called = re.search(r'"verb": "(\w+)"', rest)
            verb = called[1] if called else ""
        elif name not in READING:
            keys = rest.split(" ") if name in ("DEL", "UNLINK") else [rest.split(" ")[0]]
            for key in keys:
                family = key.removeprefix(Keys("n").prefix).partition(":")[0]
                yield verb, OTHERS.get(key, family)


CONFIG = PoCConfig(
    block_hash="b",
    block_height=1,
    public_key="k",
    r_target=1.4,
    batch_size=2,
    callback_url="http://c",
)
BATCH = ProofBatch.of(CONFIG, [1, 2, 3, 4, 5, 6], [0.5] * 6)


def history(store: Store, client: redis.Redis) -> None:
    """All that can happen to a round, a validation, a callback and a worker, each at least once."""
    rounds, validations, workers = store.rounds, store.validations, store.workers

    store.jobs.reserve("lapsed", 1, 0.001)
    store.jobs.reserve("job", 1, 60)

    def sleep(seconds: float) -> None:
        client.hincrby("poc:n:clock", "offset", round(seconds * 1000))

    def message(round_id: str) -> Message:
        return Message("http://c", "{}", "key", round_id, 60)

    def joined(round_id: str) -> Message:
        """One that waits for others."""
        return Message("http://c", "[", "key", round_id, 60, items=("1",), tail="]")

    def beat(*tokens: str) -> None:
        round_id, _ = rounds.current()
        workers.heartbeat("w", {"fingerprint": "f"}, {}, tokens, [0.5], counted=(round_id, {-1: 2}))

    def busy(round_id: str) -> None:
        """A round with a claim, something found, a callback that waits for others, a ticket."""
        rounds.generate(
            f"g-{round_id}", GenerateRequest(config=CONFIG, round_id=round_id, replace=True)
        )
        first, claim = (rounds.claim("w", f"{round_id}-{n}", "f") for n in range(2))
        assert first
        assert claim
        assert rounds.commit(first, Computed(2, [], message=joined(round_id))) is None
        assert rounds.commit(claim, Computed(2, [(0, "0.5")], message=joined(round_id))) is None
        assert rounds.claim("w", f"{round_id}-2", "f")

    # Each command that opens a round replaces a busy one.
    busy("r1")
    rounds.init("i", InitRequest(config=CONFIG, round_id="r2", replace=True))
    busy("r3")
    rounds.validate("v", ValidateRequest(config=CONFIG, round_id="r4", replace=True))
    busy("r5")
    busy("r6")
    sleep(60)  # what its worker held is taken over
    claim = rounds.claim("w", "r6-3", "f")
    assert claim
    assert rounds.commit(claim, Computed(2, [], message=joined("r6"))) is None
    assert rounds.claim("w", "r6-4", "f")
    rounds.stop("s1", StopRequest(round_id="never"))
    rounds.stop("s2")

    # Generations whose time is over, and some that a count ends.
    def more(valid: Sequence[tuple[int, str]] = ()) -> None:
        claim = rounds.claim("w", fresh_id(), "f")
        assert claim
        computed = Computed(2, valid, message=joined(claim.round_id))
        assert rounds.commit(claim, computed) is None

    for ends in (beat, lambda: rounds.claim("w", "late", "f")):
        rounds.generate(fresh_id(), GenerateRequest(seconds=1))
        for _ in range(2):
            more()
        sleep(1)
        ends()
    rounds.generate("g-count", GenerateRequest(until_valid=2))
    more([(4, "0.5")])
    rounds.generate("g-enough", GenerateRequest(until_valid=1))
    # A batch that fails for good, a round that is full.
    busy("r7")
    claims = [rounds.claim("w", f"c{n}", "f") for n in range(2)]
    assert all(claims)
    sleep(6)
    beat("r7-2", "c0", "c1")
    rounds.give_back(claims[0], "it failed")  # type: ignore[arg-type]
    claim = rounds.claim("w", "c3", "f")
    assert claim
    assert str(rounds.commit(claim, Computed(2, [(8, "0.1"), (9, "0.1")]))).startswith(
        "the round holds 1 valid"
    )
    for entry in store.outbox.take("s", 1):
        store.outbox.defer(entry, "it answered 503")
        store.outbox.settle(entry)
    # Callbacks of rounds and of none, validations with and without an end.
    for entry in store.outbox.take("s", 3):
        store.outbox.settle(entry)
    for task in ("j1", "j2"):
        validations.open(task, ValidateRequest(batch=BATCH, config=CONFIG))
    validations.open("j3", ValidateRequest(batch=BATCH.sub_batch(0), config=CONFIG))
    busy("r8")
    batch = rounds.claim("w", "r8-2")
    assert batch
    ask = Ask("w", "t0", ("chunk", "batch"))
    refused, work = store.work.commit_and_claim(batch, Computed(checked=2, valid=[]), ask)
    assert (refused, work and work.token) == (None, "t0")
    left = [rounds.claim("w", f"r8-{n}") for n in (3, 4)]
    assert left[0]
    sleep(60)
    after = Ask("w", "r8-5", ("batch",))
    assert store.work.commit_and_claim(left[0], Computed(2, []), after)[1]
    for n in range(3):
        chunk = claim_chunk(store, "w", f"t{n}")
        assert chunk
        if n == 0:
            validations.give_back(chunk, "it failed")
        beat("t1", "t2")
    for token in ("t3", "t1", "t2", "t4", "t5", "t6"):
        chunk = claim_chunk(store, "w", token)
        assert chunk
        validations.commit(chunk, [0.5] * chunk.count, "why", '{"fingerprint": "f"}')
    for counted in ("r8", ""):
        done = validations.next_computed()
        assert done
        told = message(counted)
        of = type(done)(
            **{name: getattr(done, name) for name in done.__slots__} | {"round_id": counted}
        )
        validations.finish(of, error=CouldNotCompute("why"), message=told)
    # A validation that is cancelled, with one chunk taken and the others waiting.
    validations.open("j4", ValidateRequest(batch=BATCH, config=CONFIG))
    assert claim_chunk(store, "w", "t7")
    validations.open("j5", ValidateRequest(batch=BATCH, config=CONFIG))
    for task, counted in (("j4", ""), ("j5", "r8")):
        client.hset(f"poc:n:job:{task}", "round", counted)
        told = message(counted)
        validations.cancel(f"c-{task}", task, CouldNotCompute("why"), lambda _, told=told: told)
    for entry in store.outbox.take("s", 100):
        store.outbox.defer(entry, "it answered 503")
        store.outbox.settle(entry, "refused")
    store.results.put("task", '{"status": "SUCCESS"}', unless=["SUCCESS"])
    # A worker that was killed: another one tells of it.
    workers.heartbeat("killed", {"fingerprint": "f"}, {}, (), schemes=["distance"])
    sleep(60)
    beat()  # it was silent as well
    beat()
    workers.leave("w")
    client.zadd("poc:n:takers", {"w": 1})
    for _ in range(OF_THE_DEAD + 1):
        client.lpush(store.commands.taken_key("w"), "a command")
        store.commands.put_back_of_the_dead()
    store.commands.put_back_of_the_dead()
