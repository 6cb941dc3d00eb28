"""Which nonces a validator asks for: the same ones as the network's own controller.

That one draws with Go's `math/rand`, whose source is a sequence of 64-bit numbers in which each is
the sum of the 607th and the 273rd before it. Go keeps, as a table, what the sequence of seed 1 has
come to after 7.8e12 steps. Here that is computed: a step is multiplication by x, modulo a
polynomial, so a power of x makes them all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256

#: Numbers of the source's state, and how far back the second of each sum lies.
_LENGTH, _TAP = 607, 273
#: Where in the state a step writes that comes first.
_FEED = _LENGTH - _TAP
_STEPS = 7_800_000_000_000
_PRIME = 2**31 - 1
_MASK = 2**64 - 1


def sample(
    count: int, size: int, *, validator: str, block_hash: str, height: int, model: str
) -> list[int]:
    """The positions, of `count` artifacts in the order of their nonces, that are validated.

    All of them if there are no more than `size`.
    """
    if size >= count:
        return list(range(count))
    seed = sha256(f"{validator}:{block_hash}:{height}:{model}".encode()).digest()[:8]
    draw = GoRandom(int.from_bytes(seed, "big", signed=True))
    # The first `size` steps of a Fisher-Yates shuffle: only what has moved is noted.
    moved: dict[int, int] = {}
    chosen = []
    for at in range(size):
        other = at + draw.below(count - at)
        here, there = moved.get(at, at), moved.get(other, other)
        moved[at], moved[other] = there, here
        chosen.append(there)
    return chosen


class GoRandom:
    """Go's `rand.New(rand.NewSource(seed))`."""

    def __init__(self, seed: int) -> None:
        drawn = _small(seed)
        self._state = [
            (next(drawn) << 40) ^ (next(drawn) << 20) ^ next(drawn) ^ cooked for cooked in _cooked()
        ]
        self._tap, self._feed = 0, _FEED

    def int63(self) -> int:
        """The next number below 2**63."""
        self._tap = (self._tap - 1) % _LENGTH
        self._feed = (self._feed - 1) % _LENGTH
        number = (self._state[self._feed] + self._state[self._tap]) & _MASK
        self._state[self._feed] = number
        return number & (_MASK >> 1)

    def below(self, n: int) -> int:
        """Go's `Intn`, for an `n` below 2**31."""
        if n & (n - 1) == 0:
            return (self.int63() >> 32) & (n - 1)
        most = _PRIME - 2**31 % n
        while (number := self.int63() >> 32) > most:
            pass
        return number % n


def _small(seed: int) -> Iterator[int]:
    """The generator of 31-bit numbers that fills a state, after its first 20."""
    number = seed % _PRIME or 89_482_311
    for drawn in range(20 + 3 * _LENGTH):
        number = 48_271 * number % _PRIME
        if drawn >= 20:
            yield number


@cache
def _cooked() -> list[int]:
    """Go's table `rngCooked`."""
    drawn = _small(1)
    filled = [(next(drawn) << 20) ^ (next(drawn) << 10) ^ next(drawn) for _ in range(_LENGTH)]
    # In the order in which they are used up; the state is filled from its other end.
    line = [filled[(_FEED - 1 - at) % _LENGTH] for at in range(_LENGTH)]
    for at in range(_LENGTH, 2 * _LENGTH):
        line.append((line[at - _LENGTH] + line[at - _TAP]) & _MASK)
    steps = _power_of_x(_STEPS)
    cooked = [0] * _LENGTH
    for at in range(_LENGTH):
        number = sum(a * b for a, b in zip(steps, line[at : at + _LENGTH], strict=True))
        cooked[(_FEED - 1 - _STEPS - at) % _LENGTH] = number & _MASK
    return cooked


def _power_of_x(power: int) -> list[int]:
    """x**power modulo x**607 - x**334 - 1, with coefficients modulo 2**64; the lowest first."""
    found = [1] + [0] * (_LENGTH - 1)
    for bit in f"{power:b}":
        found = _reduced(_squared(found))
        if bit == "1":
            found = _reduced([0, *found])
    return found


def _squared(polynomial: list[int]) -> list[int]:
    """By one multiplication of long numbers, in which each coefficient has room of its own."""
    room = 24
    number = int.from_bytes(
        b"".join(each.to_bytes(room, "little") for each in polynomial), "little"
    )
    parts = (number * number).to_bytes(room * 2 * _LENGTH, "little")
    return [
        int.from_bytes(parts[at : at + room], "little") & _MASK
        for at in range(0, room * (2 * _LENGTH - 1), room)
    ]


def _reduced(polynomial: list[int]) -> list[int]:
    for at in range(len(polynomial) - 1, _LENGTH - 1, -1):
        polynomial[at - _LENGTH] = (polynomial[at - _LENGTH] + polynomial[at]) & _MASK
        polynomial[at - _TAP] = (polynomial[at - _TAP] + polynomial[at]) & _MASK
    return polynomial[:_LENGTH]
