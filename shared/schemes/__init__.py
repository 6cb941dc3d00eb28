"""Schemes: what a proof is in a round. `distance` is the published one, `artifact` the network's.

A scheme is one file here and one in `worker/schemes/`. `register` adds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny

from shared.schemes.artifact import ArtifactTerms
from shared.schemes.base import Batch, Body, Ended, Proof, Terms, Verdict
from shared.schemes.distance import Distance

__all__ = [
    "DEFAULT",
    "SCHEMES",
    "AnyBatch",
    "AnyTerms",
    "Batch",
    "Body",
    "Distance",
    "Ended",
    "Proof",
    "Terms",
    "Verdict",
    "batch_from",
    "register",
    "terms_from",
    "terms_of",
]

#: What a config, a batch and a status are of unless they say so: the published scheme.
DEFAULT = Distance.name

#: Every scheme by its name.
SCHEMES: dict[str, type[Terms]] = {}


def register(terms: type[Terms]) -> None:
    """Add a scheme."""
    SCHEMES[terms.name] = terms


register(Distance)
register(ArtifactTerms)


def terms_of(scheme: object) -> type[Terms]:
    """The scheme of that name. Raises `ValueError` for an unknown one."""
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise ValueError(f"there is no scheme {str(scheme)[:80]!r}; there are {known}")
    return SCHEMES[scheme]


def terms_from(fields: Mapping[str, Any]) -> Terms:
    """The terms that the `fields` of a config give, `scheme` among them.

    Raises `ValueError` for a field that only another scheme has, and what the scheme refuses.
    """
    terms = terms_of(fields.get("scheme", DEFAULT))
    own = {name: value for name, value in fields.items() if name != "scheme"}
    for other in SCHEMES.values():
        foreign = own.keys() & other.model_fields.keys() - terms.known()
        if foreign:
            raise ValueError(
                f"{min(foreign)}: a field of the scheme {other.name}, and this is {terms.name}"
            )
    return terms.model_validate(own)


def _terms(value: Any) -> Terms:
    return value if isinstance(value, Terms) else terms_from(value)


def batch_from(fields: Any) -> Batch:
    """A batch of whichever scheme: the one that it names, or that its fields are of."""
    if isinstance(fields, Batch):
        return fields
    if not isinstance(fields, Mapping):
        raise ValueError("is no batch")  # noqa: TRY004 - pydantic reads ValueErrors
    named = fields.get("scheme")
    if named is None:
        marked = (each for each in SCHEMES.values() if each.batch.marks & fields.keys())
        kind = next(marked, terms_of(DEFAULT)).batch
        return kind.model_validate(fields)
    kind = terms_of(named).batch
    if "scheme" not in kind.model_fields:
        fields = {name: value for name, value in fields.items() if name != "scheme"}
    return kind.model_validate(fields)


#: A field that holds the terms of any scheme, or its batch.
AnyTerms = Annotated[SerializeAsAny[Terms], PlainValidator(_terms)]
AnyBatch = Annotated[SerializeAsAny[Batch], PlainValidator(batch_from)]
