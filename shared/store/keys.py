"""Every key in Redis: its type, what it holds, who owns it, how long it lives.

`docs/redis.md` holds the table made from `KEYS` (`python -m shared.store.keys` prints it). The
names of `status`, `round` and `nonces` are part of the contract; all others are private.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """One family of keys: `poc:<namespace>:<name>`, or with `:<id>` behind it."""

    kind: str
    holds: str
    #: The scripts that write it.
    writers: str
    #: What removes it.
    lives: str
    #: What the `<id>` is; empty for a key of the whole namespace.
    per: str = ""


_ROUND = "while its round is current, then POC_KEEP_ROUNDS_S"
_CURRENT = "while its round is current"
_NAMESPACE = "as long as the namespace"
_EMPTY = "until it is empty"
_MEMORY = "POC_COMMAND_MEMORY_S"
_ALIVE = "30 s, or five heartbeats"

KEYS: dict[str, Key] = {
    "status": Key(
        "hash",
        "the newest round, for pollers",
        "init, generate, validate, stop, claim, commit, heartbeat, settle, finish_job",
        _NAMESPACE,
    ),
    "clock": Key("hash", "last time seen, and what keeps it from going back", "all", _NAMESPACE),
    "round": Key("hash", "as status, of each round kept", "as status", _ROUND, "round"),
    "nonces": Key("hash", "valid nonce -> distance", "commit", _ROUND, "round"),
    "found": Key("list", "valid nonces in order of discovery", "commit", _ROUND, "round"),
    "run": Key(
        "hash",
        "config, epoch, cursor and clocks",
        "init, generate, validate, stop, claim, commit, heartbeat",
        _ROUND,
        "round",
    ),
    "claims": Key(
        "hash",
        "token -> claimed positions",
        "claim, commit, give_back, heartbeat, and what opens a round",
        _CURRENT,
        "round",
    ),
    "leases": Key(
        "zset",
        "token -> end of its lease, ms",
        "as claims; stop, validate",
        _CURRENT,
        "round",
    ),
    "tickets": Key(
        "set",
        "tasks that wait for the end",
        "generate, stop, validate, init, commit",
        _CURRENT,
        "round",
    ),
    "tombstone": Key("string", "a round stopped before it began", "stop", _MEMORY, "round"),
    "command": Key(
        "string",
        "outcome of a command",
        "init, generate, validate, stop, open_job",
        _MEMORY,
        "task",
    ),
    "jobs": Key("zset", "open validations -> since, ms", "open_job, finish_job", _EMPTY),
    "job": Key(
        "hash",
        "a validation: batch, config, progress",
        "open_job, commit_chunk, finish_job",
        "while open, then POC_KEEP_ROUNDS_S",
        "task",
    ),
    "job_dist": Key(
        "hash", "chunk start -> distances", "commit_chunk", "while its job is open", "task"
    ),
    "chunks": Key("list", "chunks that wait for a worker", "open_job, claim_chunk", _EMPTY),
    "chunk_claims": Key(
        "hash",
        "token -> claimed chunk",
        "claim_chunk, commit_chunk, give_back, heartbeat",
        _EMPTY,
    ),
    "chunk_leases": Key("zset", "token -> end of its lease, ms", "as chunk_claims", _EMPTY),
    "verdicts": Key(
        "list",
        "computed jobs that wait for a verdict",
        "commit_chunk, open_job, finish_job",
        _EMPTY,
    ),
    "endings": Key(
        "list", "ends to be told to Celery", "what ends a round; finish_job; the clerk", _EMPTY
    ),
    "reporter": Key("string", "who reports progress now", "the clerk", "a second"),
    "outbox": Key("stream", "callbacks to deliver", "commit, finish_job, settle", _NAMESPACE),
    "callbacks": Key(
        "hash", "counts of callbacks that belong to no round", "finish_job, settle", _NAMESPACE
    ),
    "workers": Key("zset", "worker -> last heartbeat, ms", "heartbeat, leave", _NAMESPACE),
    "worker": Key("hash", "a worker's device, rate, ...", "heartbeat, leave", _ALIVE, "worker"),
    "model": Key("hash", "the model of the namespace", "heartbeat, leave", _ALIVE),
    "reference": Key(
        "hash",
        "what a model's first worker gave in its functional check",
        "heartbeat",
        "7 days after its last worker",
        "fingerprint",
    ),
    "incidents": Key(
        "list",
        "workers that had to end, newest first, as JSON",
        "the worker",
        "7 days after the last",
    ),
    "dead_letters": Key(
        "list",
        "what nobody could read: messages, ends, ...",
        "the transport, the clerk, the sender",
        "7 days after the last",
    ),
    "unacked": Key(
        "hash", "messages that a worker took and has not acknowledged", "the transport", _EMPTY
    ),
    "unacked_index": Key("zset", "their tags -> since when, s", "the transport", _EMPTY),
    "unacked_mutex": Key("string", "who gives old ones back now", "the transport", "5 minutes"),
}


class Keys:
    """The names of the keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"poc:{namespace}:"
        #: The channel that is rung when there is something new to do.
        self.wake = f"{self.prefix}wake"

    def __call__(self, name: str, id: str = "") -> str:
        """The key `name`; `id` for a family that has one per round, task or worker."""
        if bool(KEYS[name].per) != bool(id):
            raise KeyError(f"key {name!r} is per {KEYS[name].per or 'namespace'}, got id {id!r}")
        return f"{self.prefix}{name}:{id}" if id else f"{self.prefix}{name}"


def table() -> str:
    """All keys as a Markdown table."""
    rows = ["| key | type | holds | written by | lives |", "| --- | --- | --- | --- | --- |"]
    for name, key in KEYS.items():
        suffix = f":<{key.per}>" if key.per else ""
        rows.append(
            f"| `poc:<namespace>:{name}{suffix}` | {key.kind} | {key.holds} "
            f"| {key.writers} | {key.lives} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())  # noqa: T201
