"""Which round is the current one: what every script that looks at it needs to know beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.config import PoCConfig
from shared.errors import RoundFailed
from shared.store.connection import redis_errors
from shared.store.context import Context


class CurrentRound:
    """Calls scripts on the current round.

    Keys are declared before a script runs, so the caller has to know the round. It keeps the last
    one that it saw. A script that finds another one changes nothing and says which it is; then it
    is called again.
    """

    def __init__(self, context: Context) -> None:
        self._redis, self._keys, self._scripts = context.redis, context.keys, context.scripts
        self._seen = ""

    def call(self, verb: str, **args: Any) -> tuple[str, Any]:
        """Run `verb` on the current round: its id (empty before the first), and the answer."""
        round_id = self._seen
        while "moved" in (answer := self._scripts.call(verb, round=round_id, **args)):
            round_id = self._seen = answer["moved"]
        return round_id, answer

    def call_by_config(
        self, verb: str, args_by: Callable[[PoCConfig | None], dict[str, Any]]
    ) -> Any:
        """Run `verb` with what `args_by` makes of the current round's config; the answer."""
        while True:
            round_id, config = self.read()
            answer = self._scripts.call(verb, round=round_id, **args_by(config))
            if "moved" not in answer:
                return answer

    def read(self) -> tuple[str, PoCConfig | None]:
        """Id and config of the current round; ("", None) before the first.

        Raises `RoundFailed` if Redis has lost the config of the current round.
        """
        looked_for = None
        with redis_errors():
            while round_id := self._redis.hget(self._keys("status"), "round_id"):
                key = self._keys("run", round_id)
                if config := self._redis.hget(key, "config"):
                    self._seen = round_id
                    return round_id, PoCConfig.model_validate_json(config)
                # It may have been replaced, and have expired, in between.
                if round_id == looked_for:
                    raise RoundFailed(
                        f"Redis has lost {key}, which holds the config of round {round_id}: open a "
                        "new round, and see that maxmemory-policy is noeviction"
                    )
                looked_for = round_id
        return "", None
