"""One URL for broker, results and store, in each one's words.

What is refused, and what is hidden, `test_settings.py` has: it is where an operator meets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.redis_url import RedisUrl


def login_and_tls(url: RedisUrl) -> dict[str, Any]:
    """How to connect to a Sentinel, without how long to wait for it."""
    patience = {"socket_timeout", "socket_connect_timeout", "retry"}
    return {name: value for name, value in url.sentinel_options.items() if name not in patience}


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("redis://h", "redis://h/0"),
        ("redis://h:1/7", "redis://h:1/7"),
        ("redis://u:p%2F@[::1]:1/0", "redis://u:p%2F@[::1]:1/0"),
        ("rediss://h/0", "rediss://h/0?ssl_cert_reqs=required"),
        ("sentinel://a,b:1/node", "sentinel://a,b:1/node/0"),
        ("sentinel://:p@a/node/3", "sentinel://:p@a/node/3"),
        ("sentinels://a/node", "sentinels://a/node/0?ssl_cert_reqs=required"),
    ],
)
def test_a_url_is_made_whole(url: str, whole: str) -> None:
    """And what is whole stays as it is."""
    assert str(RedisUrl.parse(url)) == whole
    assert RedisUrl.parse(whole) == RedisUrl.parse(url)


@pytest.mark.parametrize("url", ["redis://u:p@h:1/7", "rediss://h/0?ssl_cert_reqs=none"])
def test_one_redis_is_the_same_for_all(url: str) -> None:
    found = RedisUrl.parse(url)
    assert found.celery == str(found) == url
    assert (found.name, found.sentinels) == ("", [])


def test_celery_asks_each_sentinel_by_a_url_of_its_own() -> None:
    """With the login and the database of the Redis, and a port in each."""
    url = RedisUrl.parse("sentinel://u:p%40@a,b:1,[::1]:2/node/3?sentinel_password=s")
    assert url.celery == (
        "sentinel://u:p%40@a:26379/3;sentinel://u:p%40@b:1/3;sentinel://u:p%40@[::1]:2/3"
    )
    assert url.sentinels == [("a", 26379), ("b", 1), ("::1", 2)]
    assert (url.name, url.database) == ("node", 3)


@pytest.mark.parametrize(
    ("url", "credentials", "sentinel"),
    [
        ("sentinel://a/node", {}, {}),
        ("sentinel://:p%40@a/node", {"password": "p@"}, {}),
        ("sentinel://u:p@a/node", {"username": "u", "password": "p"}, {}),
        ("sentinel://a/node?sentinel_password=s%40", {}, {"password": "s@"}),
        (
            "sentinel://a/node?sentinel_user=x&sentinel_password=s",
            {},
            {"username": "x", "password": "s"},
        ),
    ],
)
def test_redis_and_sentinels_have_their_own_logins(
    url: str, credentials: dict[str, str], sentinel: dict[str, str]
) -> None:
    """As they are, no longer as a URL has them."""
    assert RedisUrl.parse(url).credentials == credentials
    assert login_and_tls(RedisUrl.parse(url)) == sentinel


def test_with_tls_sentinels_are_verified_as_redis_is(tmp_path: Path) -> None:
    ca = tmp_path / "our ca.pem"
    ca.touch()
    url = RedisUrl.parse(f"sentinels://a/node?ssl_ca_certs={tmp_path}/our%20ca.pem")
    tls: dict[str, Any] = {"ssl_ca_certs": str(ca), "ssl_cert_reqs": "required"}
    assert url.tls == tls
    assert login_and_tls(url) == {"ssl": True} | tls


def test_its_parts_show_no_password() -> None:
    """Whoever prints it."""
    assert "hunter2" not in repr(
        RedisUrl.parse("sentinel://:hunter2@a/n?sentinel_password=hunter2")
    )


#: A part of a URL as a hand may write it.
parts = st.text("ab1.:,@/?&=%[]", max_size=12)


@given(st.sampled_from(["redis", "rediss", "sentinel", "sentinels", "x"]), parts)
def test_whatever_is_written_is_a_url_or_a_reason(scheme: str, rest: str) -> None:
    """Never another error, and what is taken is taken again."""
    try:
        url = RedisUrl.parse(f"{scheme}://{rest}")
    except ValueError:
        return
    assert RedisUrl.parse(str(url)) == url
