"""Every key in Redis: its type, what it holds, who writes it, how long it lives.

`docs/redis.md` holds the table made from `KEYS` (`python -m shared.store` prints it). The names
of `status`, `round` and `nonces` are part of the contract; all others are private.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.store.verbs import VERBS


@dataclass(frozen=True, slots=True)
class Key:
    """One family of keys: `poc:<namespace>:<name>`, or with `:<id>` behind it."""

    kind: str
    holds: str
    #: What removes it.
    lives: str
    #: What the `<id>` is; empty for a key of the whole namespace.
    per: str = ""
    #: Who writes it besides the scripts, whose heads say what they write.
    also: str = ""
    #: What its name begins with instead of the namespace: Celery chose it.
    prefix: str = ""


_ROUND = "while its round is current, then POC_KEEP_ROUNDS_S"
_CURRENT = "while its round is current"
_NAMESPACE = "as long as the namespace"
_EMPTY = "until it is empty"
_MEMORY = "POC_COMMAND_MEMORY_S"
_ALIVE = "30 s, or five heartbeats"

KEYS: dict[str, Key] = {
    # The newest round.
    "status": Key("hash", "the newest round, for pollers", _NAMESPACE),
    "clock": Key("hash", "last time seen, and what keeps it from going back", _NAMESPACE),
    # Of each round.
    "round": Key("hash", "as status, of each round kept", _ROUND, "round"),
    "nonces": Key("hash", "valid nonce -> distance, or what its scheme has", _ROUND, "round"),
    "found": Key("list", "valid nonces in order of discovery", _ROUND, "round"),
    "gathered": Key("list", "callbacks that are being joined", _CURRENT, "round"),
    "run": Key("hash", "config, epoch, cursor and clocks", _ROUND, "round"),
    "history": Key("list", "course of the round: time, checked, valid", _ROUND, "round"),
    "histogram": Key("hash", "bin of distances -> nonces in it, nearly", _ROUND, "round"),
    "claims": Key("hash", "token -> claimed positions", _CURRENT, "round"),
    "leases": Key("zset", "token -> end of its lease, ms", _CURRENT, "round"),
    "tickets": Key("set", "tasks that wait for the end", _CURRENT, "round"),
    "tombstone": Key("string", "a round stopped before it began", _MEMORY, "round"),
    "kept": Key("zset", "rounds that were replaced -> end of their life, ms", _NAMESPACE),
    # Of each task.
    "command": Key("string", "outcome of a command", _MEMORY, "task"),
    "result": Key(
        "string",
        "state and result of a task, for its caller",
        _MEMORY,
        "task",
        also="Celery",
        prefix="celery-task-meta-",
    ),
    "expected": Key("string", "a job that came by HTTP", _MEMORY, "task"),
    # Commands on their way.
    "queue": Key(
        "list",
        "commands that wait for a worker",
        _EMPTY,
        "namespace",
        also="callers, the transport",
        prefix="poc.",
    ),
    "taken": Key(
        "list",
        "commands that a worker took, until they are done",
        _EMPTY,
        "worker",
        also="the transport",
    ),
    "takers": Key("zset", "workers that may have taken some -> last heartbeat, ms", _EMPTY),
    "put_back": Key(
        "hash",
        "SHA-1 of a command -> how often it was put back, tenfold by a death",
        "a day after the last",
    ),
    # Validations. They are called jobs here alone: the names of keys stay.
    "jobs": Key("zset", "open validations -> since, ms", _EMPTY),
    "owed": Key("hash", "validation -> its nonces that have yet to be computed", _EMPTY),
    "reserved": Key("zset", "jobs by HTTP that no worker has yet -> until when, ms", _EMPTY),
    "job": Key(
        "hash",
        "a validation: batch, config, progress; its evidence, if it found fraud or nothing",
        "while open, then POC_KEEP_ROUNDS_S",
        "task",
    ),
    "job_dist": Key("hash", "chunk start -> proofs", "while its job is open", "task"),
    "chunks": Key("list", "chunks that wait for a worker", _EMPTY),
    "chunk_claims": Key("hash", "token -> claimed chunk", _EMPTY),
    "chunk_leases": Key("zset", "token -> end of its lease, ms", _EMPTY),
    "verdicts": Key("list", "computed validations that wait for a verdict", _EMPTY),
    "outcomes": Key("stream", "how validations ended, the newest 100", _NAMESPACE),
    # What callers and receivers have yet to be told.
    "endings": Key("list", "ends to be told to Celery", _EMPTY, also="the clerk"),
    "reporter": Key("string", "who reports progress now", "a second", also="the clerk"),
    "outbox": Key("stream", "callbacks to deliver", _NAMESPACE, also="the sender"),
    "callbacks": Key(
        "hash",
        "counts of callbacks that belong to no round, and since when the oldest of all waits",
        _NAMESPACE,
    ),
    # Workers.
    "totals": Key(
        "hash",
        "counts of earlier rounds, and of all else that happened",
        _NAMESPACE,
        also="the worker",
    ),
    "workers": Key("zset", "worker -> last heartbeat, ms", _NAMESPACE),
    "worker": Key("hash", "a worker's device, rate, ...", _ALIVE, "worker"),
    "schemes": Key("zset", "scheme -> until when a worker lives that computes it, ms", _NAMESPACE),
    "model": Key("hash", "the model of the namespace", _ALIVE),
    "reference": Key(
        "hash",
        "what a model's first worker gave in its functional check",
        "7 days after its last worker",
        "fingerprint",
    ),
    "incidents": Key(
        "list",
        "workers that had to end, newest first, as JSON",
        "7 days after the last",
        also="the worker",
    ),
    "dead_letters": Key(
        "list",
        "what nobody could read: messages, ends, ...",
        "7 days after the last",
        also="the transport, the clerk, the sender",
    ),
}


class Keys:
    """The names of the keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"poc:{namespace}:"
        #: The channel that scripts publish to when there is something new to do.
        self.wake = f"{self.prefix}wake"

    def __call__(self, name: str, id: str = "") -> str:
        """The key `name`; `id` for a family that has one per round, task or worker."""
        key = KEYS[name]
        if bool(key.per) != bool(id):
            raise KeyError(f"key {name!r} is per {key.per or 'namespace'}, got id {id!r}")
        if key.prefix:
            return f"{key.prefix}{id}"
        return f"{self.prefix}{name}:{id}" if id else f"{self.prefix}{name}"


def writers(name: str) -> str:
    """Who writes to the family `name`: scripts, as their heads say, and others."""
    scripts = [verb.name for verb in VERBS.values() if name in verb.writes]
    return ", ".join(scripts + ([KEYS[name].also] if KEYS[name].also else []))


def table() -> str:
    """All keys as a Markdown table."""
    rows = ["| key | type | holds | written by | lives |", "| --- | --- | --- | --- | --- |"]
    for name, key in KEYS.items():
        shown = Keys("<namespace>")(name, f"<{key.per}>" if key.per else "")
        rows.append(f"| `{shown}` | {key.kind} | {key.holds} | {writers(name)} | {key.lives} |")
    return "\n".join(rows)
