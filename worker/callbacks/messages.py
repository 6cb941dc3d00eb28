"""Freezing what a receiver is told, for the script that commits it.

A message is kept in the outbox by the very script that commits what it tells, so neither is there
without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from shared.about import about
from shared.config import PoCConfig
from shared.errors import PoCError, as_fields
from shared.schemes import Body, Proof, Verdict
from shared.store import Claim, ComputedValidation, Message


def generated_message(claim: Claim, valid: Sequence[tuple[int, Proof]]) -> Message | None:
    """What tells a claim's `valid` nonces; None when there are none, or nobody wants to know."""
    config = claim.config
    if not valid or config.callback_url is None:
        return None
    body = config.terms.body_of(config, [n for n, _ in valid], [proof for _, proof in valid])
    return message(config, "generated", body, f"{claim.round_id}:{claim.token}", claim.round_id)


def validated_message(
    done: ComputedValidation, outcome: Verdict | PoCError, not_computed: Sequence[int] = ()
) -> Message | None:
    """What tells the end of a validation; None if nobody wants to know.

    The end is a verdict, or an error with the nonces that were `not_computed`.
    """
    terms = done.config.terms
    if isinstance(outcome, Verdict):
        path, body = terms.told(done.id, outcome)
    else:
        said = as_fields(outcome)
        about = done.batch.model_dump(
            include={"public_key", "block_hash", "block_height", "nonces"}
        )
        rest = {"node_id": done.batch.node_id, "not_computed": list(not_computed)}
        path, body = terms.told_failed(done.id, said | about | rest)
    return message(done.config, path, body, f"validation:{done.id}", done.round_id)


def message(
    config: PoCConfig, path: str, body: Body, key: str, round_id: str = ""
) -> Message | None:
    """`body` for `{callback_url}/{path}`; None when nobody wants to know.

    It follows from what the calling thread is at.
    """
    if config.callback_url is None:
        return None
    return Message(
        url=f"{config.callback_url}/{path}",
        body=body.head,
        # A task id may be any text, a header may not.
        key=quote(key, safe=":"),
        round=round_id,
        deadline_s=config.callback_deadline_s,
        traceparent=about().traceparent,
        items=body.items,
        tail=body.tail,
    )
