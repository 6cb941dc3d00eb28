"""The verbs of the store: each Lua script, and what its head declares.

    -- What it does.
    -- with _round
    -- K reads: status, named=round(round_id)
    -- K writes: command(command), claims=claims(round)|chunk_claims
    -- A: round, command, error?

`with` names what is put before the script, besides the prelude. K are its keys: `status` is a key
of the namespace, `command(command)` the one of the family `command` whose id is A.command, and
`named=round(round_id)` is K.named in the script. A key whose id is left out is left out, or is
what stands behind the `|`. A are its arguments; those with a `?` may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

_LUA = resources.files(__package__) / "lua"

_HEAD = re.compile(r"(?:--.*\n)+")
_KEY = re.compile(
    r"(?:(?P<alias>\w+)=)?(?P<family>\w+)(?:\((?P<of>\w+)\))?(?:\|(?P<otherwise>\w+))?"
)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key that a script may touch."""

    #: What the script calls it: K.alias.
    alias: str
    #: Its family, as `shared.store.keys` has it.
    family: str
    #: The argument that has its id; empty for a key of the namespace.
    of: str
    #: The key of the namespace that it is when that argument is left out; empty for none.
    otherwise: str
    written: bool


@dataclass(frozen=True, slots=True)
class Verb:
    """One script."""

    name: str
    #: What runs: the prelude, what the head names, and the script.
    source: str
    keys: tuple[KeyUse, ...]
    required: frozenset[str]
    optional: frozenset[str]
    #: The arguments that have ids of keys.
    ids: tuple[str, ...]

    def keys_for(self, args: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        """The alias, family and id of each key that a call with `args` touches."""
        for use in self.keys:
            if not use.of:
                yield use.alias, use.family, ""
            elif of := args.get(use.of):
                yield use.alias, use.family, of
            elif use.otherwise:
                yield use.alias, use.otherwise, ""

    def check(self, args: Mapping[str, Any]) -> None:
        """Raise `TypeError` unless `args` are those of the head."""
        wrong = (self.required - args.keys()) | (args.keys() - self.required - self.optional)
        if wrong:
            raise TypeError(f"{self.name}.lua: its head and a call differ in {sorted(wrong)}")

    @property
    def writes(self) -> frozenset[str]:
        """The families that it writes to."""
        written = [use for use in self.keys if use.written]
        return frozenset(
            family for use in written for family in (use.family, use.otherwise) if family
        )


def _read(name: str) -> Verb:
    text = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
    head = _HEAD.match(text)
    if head is None:
        raise ValueError(f"{name}.lua: has no head")
    parts = [(_LUA / "_prelude.lua").read_text(encoding="utf-8")]
    keys: list[KeyUse] = []
    arguments: list[str] = []
    # A line that is indented goes on where the last one ended.
    for line in re.sub(r"\n--   ", " ", head[0]).splitlines():
        what, _, listed = line.removeprefix("-- ").partition(": ")
        if what.startswith("with "):
            parts.append((_LUA / f"{what[5:]}.lua").read_text(encoding="utf-8"))
        elif what in ("K reads", "K writes"):
            keys += [_key(name, each, written=what == "K writes") for each in listed.split(", ")]
        elif what == "A":
            arguments += listed.split(", ")
    return Verb(
        name=name,
        source="".join([*parts, text]),
        keys=tuple(keys),
        required=frozenset(each for each in arguments if not each.endswith("?")),
        optional=frozenset(each[:-1] for each in arguments if each.endswith("?")),
        ids=tuple(dict.fromkeys(key.of for key in keys if key.of)),
    )


def _key(verb: str, text: str, *, written: bool) -> KeyUse:
    found = _KEY.fullmatch(text)
    if found is None:
        raise ValueError(f"{verb}.lua: its head has {text!r}, which is no key")
    family, of, otherwise = (found[part] or "" for part in ("family", "of", "otherwise"))
    return KeyUse(found["alias"] or family, family, of, otherwise, written)


#: Every script by its name: a new file is a new verb.
VERBS: dict[str, Verb] = {
    name: _read(name)
    for file in sorted(_LUA.iterdir(), key=lambda file: file.name)
    if (name := file.name.removesuffix(".lua")) != file.name and not name.startswith("_")
}
