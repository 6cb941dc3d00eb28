"""The digest of a round's nonces."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator

from shared.receipt import Nonces

FOUND = [(3, 1.25), (2**63 - 1, 0.1), (7, 1e-07), (5, 1.0)]


class Page(list[int]):
    """One that can be referred to weakly."""


def test_it_is_of_lines_as_its_rule_says() -> None:
    """Whoever has the nonces comes to the same with a shell."""
    lines = b"3 1.25\n9223372036854775807 0.1\n7 1e-07\n5 1.0\n"
    nonces = Nonces.of([([n for n, _ in FOUND], [d for _, d in FOUND])])
    assert (nonces.count, nonces.sha256) == (4, hashlib.sha256(lines).hexdigest())


def test_pages_leave_no_trace_in_it() -> None:
    whole = Nonces.of([([n for n, _ in FOUND], [d for _, d in FOUND])])
    assert Nonces.of([([n], [d]) for n, d in FOUND]) == whole
    assert Nonces.of([]).sha256 == hashlib.sha256().hexdigest()


def test_another_order_is_another_digest() -> None:
    pages = [([n], [d]) for n, d in FOUND]
    assert Nonces.of(pages).sha256 != Nonces.of(pages[::-1]).sha256


def test_one_page_is_held_at_a_time() -> None:
    """So that a round of any size fits."""
    alive: list[weakref.ref[Page]] = []

    def pages() -> Iterator[tuple[Page, list[float]]]:
        for number in range(5):
            assert all(each() is None for each in alive[:-1])
            page = Page([number])
            alive.append(weakref.ref(page))
            yield page, [1.0]
            del page

    assert Nonces.of(pages()).count == 5
