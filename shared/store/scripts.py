"""How the store runs its verbs: a script by its name, with the keys that its head declares."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from shared import errors
from shared.store.connection import Client, redis_errors
from shared.store.keys import Keys
from shared.store.verbs import VERBS


def fresh_id() -> str:
    """An id that nobody has: random, never counted, since a fail-over may undo the last writes."""
    return secrets.token_hex(8)


def flat(fields: Mapping[str, str]) -> list[str]:
    """A mapping as `HSET` takes it in a script."""
    return [item for pair in fields.items() for item in pair]


#: Half a character, as a path in another encoding has it, is none in Redis' JSON: it is replaced
#: when this is encoded.
_as_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode


class Scripts:
    """The verbs, ready to be called on one Redis in one namespace."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._keys = keys
        # The same few keys are named again and again: those of the current round.
        self._named = lru_cache(maxsize=64)(self._name)
        self._scripts = {name: redis.register_script(verb.source) for name, verb in VERBS.items()}

    def call(self, verb: str, **args: Any) -> Any:
        """Run `verb` atomically on the keys that `args` name; an arg of None is left out.

        Raises the error that the script answers with, or `StoreUnavailable`.
        """
        given = {name: value for name, value in args.items() if value is not None}
        VERBS[verb].check(given)
        aliases, keys = self._named(verb, tuple(map(given.get, VERBS[verb].ids)))
        asked = {"verb": verb, "wake": self._keys.wake, "keys": aliases, **given}
        payload = _as_json(asked).encode(errors="replace")
        with redis_errors():
            reply = self._scripts[verb](keys=keys, args=[payload])
        if not isinstance(reply, str):
            return reply
        answer = json.loads(reply)
        if (first := answer.get("verb", verb)) != verb:
            raise errors.CommandMismatch(
                f"{verb} came under the id {args['command']} of an earlier {first}: "
                "send it under an id of its own"
            )
        if name := answer.get("error"):
            raise errors.named(name, answer["message"])
        return answer

    def _name(self, verb: str, ids: tuple[str | None, ...]) -> tuple[list[str], list[str]]:
        """What the script calls its keys, and the keys."""
        named = list(VERBS[verb].keys_for(dict(zip(VERBS[verb].ids, ids, strict=True))))
        return [each for each, _, _ in named], [self._keys(family, of) for _, family, of in named]
