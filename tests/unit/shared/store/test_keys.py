"""Keys are named in one place, and the page that shows them is current."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.store.keys import KEYS, Keys, table

PAGE = Path(__file__).parents[4] / "docs" / "redis.md"


def test_names_that_pollers_rely_on() -> None:
    """These are the contract."""
    keys = Keys("default")
    assert keys("status") == "poc:default:status"
    assert keys("round", "r1") == "poc:default:round:r1"
    assert keys("nonces", "r1") == "poc:default:nonces:r1"


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_asked_for_with_what_it_is_per(name: str) -> None:
    """An id too many or too few is a mistake of ours, not another key."""
    wrong_id = "" if KEYS[name].per else "id"
    with pytest.raises(KeyError, match=name):
        Keys("n")(name, wrong_id)


def test_no_two_keys_share_a_name() -> None:
    """Namespaces, families and ids keep out of each other's way."""
    names = [
        Keys(namespace)(name, of if KEYS[name].per else "")
        for namespace in ("a", "b")
        for name in KEYS.keys() - {"result", "queue"}  # Celery's, which has no namespaces
        for of in (("x", "y") if KEYS[name].per else ("",))
    ]
    assert len(set(names)) == len(names)


def test_the_page_shows_the_current_table() -> None:
    """After a change: put what `python -m shared.store` prints between the markers."""
    page = PAGE.read_text(encoding="utf-8")
    shown = page.partition("<!-- keys: python -m shared.store -->\n")[2].partition("\n<!-- end")[0]
    assert shown == table()
