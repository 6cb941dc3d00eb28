"""The status API shows what the store holds, refuses bad questions, and never writes."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import fakeredis
import pytest
from fastapi.testclient import TestClient

from shared.api import create_app, serve
from shared.config import MAX_NONCE, PoCConfig, r_target_for
from shared.errors import ConfigError
from shared.requests import GenerateRequest
from shared.settings import load_settings
from shared.status import Commit, Incident
from shared.store import Computed, Store
from shared.store.connection import Client
from shared.store.keys import Keys
from support import kept

SETTINGS = load_settings({}, namespace="test")
STATUS = "/api/v1/pow/status"
NONCES = "/api/v1/pow/nonces"
OVERVIEW = "/api/v1/pow/overview"
EVENTS = "/api/v1/pow/events"
CONFIG = PoCConfig(block_hash="b10c", block_height=7, public_key="node", r_target=1.4, batch_size=4)


@pytest.fixture
def server() -> fakeredis.FakeServer:
    """A Redis that can be taken away: `server.connected = False`."""
    return fakeredis.FakeServer()


@pytest.fixture
def redis(server: fakeredis.FakeServer) -> Client:
    """A client of it, for a look behind the curtain."""
    return fakeredis.FakeRedis(server=server, decode_responses=True)


@pytest.fixture
def store(redis: Client) -> Store:
    """The store that the API reads."""
    return Store(SETTINGS, redis)


@pytest.fixture
def api(store: Store) -> Iterator[TestClient]:
    """A client of the API; what the API fails to handle is a plain 500, as for a real client."""
    with TestClient(create_app(SETTINGS, store), raise_server_exceptions=False) as client:
        yield client


def find(store: Store, found: Sequence[tuple[int, float]], round_id: str | None = None) -> str:
    """Generate in a new round that finds these nonces; gives its id."""
    status = store.rounds.generate(
        uuid4().hex, GenerateRequest(config=CONFIG, round_id=round_id, replace=True)
    )
    claim = store.rounds.claim("w", uuid4().hex)
    assert claim
    assert store.rounds.commit(claim, Computed(claim.count, kept(found))) is None
    return status.round_id


def live(store: Store, name: str = "w", state: str = "idle", **fields: str) -> None:
    """Send the heartbeat of a worker."""
    store.workers.heartbeat(name, {"fingerprint": "f"}, {"state": state, **fields}, tokens=[])


def body(api: TestClient, url: str, expected: int = 200, **params: Any) -> dict[str, Any]:
    """The JSON that `url` answers with the `expected` status code."""
    response = api.get(url, params=params)
    assert response.status_code == expected, response.text
    found: dict[str, Any] = response.json()
    return found


class TestStatus:
    """What a poller sees."""

    def test_before_the_first_round_all_is_zero(self, api: TestClient) -> None:
        """A poller that is early sees an idle node, not an error."""
        found = body(api, STATUS)
        assert found["state"] == "IDLE"
        assert found["round_id"] == ""
        assert (found["total_checked"], found["valid_nonces"], found["workers"]) == (0, [], [])

    def test_a_round_is_shown_with_what_it_found(self, api: TestClient, store: Store) -> None:
        """Counters, config, nonces and distances are the round's."""
        round_id = find(store, [(1, 1.25), (3, 0.1)])
        found = body(api, STATUS)
        expected = {
            "state": "GENERATING",
            "round_id": round_id,
            "block_hash": "b10c",
            "r_target": 1.4,
            "strong_rng": False,
            "total_checked": 4,
            "total_valid": 2,
            "valid_nonces": [1, 3],
            "valid_distances": [1.25, 0.1],
            "error": "",
            "callbacks_pending": 0,
        }
        assert {name: found[name] for name in expected} == expected
        assert found["elapsed_seconds"] >= 0
        assert found["rate_per_second"] >= 0

    def test_it_is_what_the_store_gives_everybody(self, api: TestClient, store: Store) -> None:
        """The manager's status and the API's are one."""
        find(store, [(1, 1.25)])
        live(store, device="cpu")
        assert body(api, STATUS) == store.status(newest=100).model_dump(mode="json")

    def test_only_the_newest_nonces_are_shown(self, api: TestClient, store: Store) -> None:
        """`newest` bounds the lists, oldest first, and never the counts."""
        find(store, [(0, 0.5), (1, 0.25), (2, 0.75)])
        found = body(api, STATUS, newest=2)
        assert (found["valid_nonces"], found["valid_distances"]) == ([1, 2], [0.25, 0.75])
        assert found["total_valid"] == 3
        assert body(api, STATUS, newest=0)["valid_nonces"] == []

    @pytest.mark.parametrize("newest", ["-1", "1001", "many", ""])
    def test_a_bad_number_is_refused(self, api: TestClient, newest: str) -> None:
        """What can't be shown is the asker's mistake."""
        body(api, STATUS, 422, newest=newest)

    def test_the_rounds_that_are_kept_are_listed(self, api: TestClient, store: Store) -> None:
        """The newest first, as many as are asked for, with counts and without nonces."""
        rounds = "/api/v1/pow/rounds"
        assert body(api, rounds) == {"rounds": []}
        for name in ("r1", "r2"):
            find(store, [(1, 0.5)], name)
        newest, oldest = body(api, rounds)["rounds"]
        assert (newest["round_id"], newest["kept_until"], newest["total_valid"]) == ("r2", 0, 1)
        assert (oldest["round_id"], oldest["state"], oldest["valid_nonces"]) == (
            "r1",
            "STOPPED",
            [],
        )
        assert body(api, rounds, newest=1)["rounds"] == [newest]
        body(api, rounds, 422, newest=0)

    def test_workers_are_listed(self, api: TestClient, store: Store) -> None:
        """Every live worker with its last heartbeat."""
        live(store, "b", "generating", device="cuda:1")
        live(store, "a", "idle", device="cuda:0")
        found = [(w["name"], w["state"], w["device"]) for w in body(api, STATUS)["workers"]]
        assert found == [("a", "idle", "cuda:0"), ("b", "generating", "cuda:1")]

    def test_workers_that_had_to_end_are_listed(self, api: TestClient, store: Store) -> None:
        """With why, and what of them is in doubt."""
        assert body(api, STATUS)["incidents"] == []
        commit = Commit(round_id="r", start=0, count=4, first_nonce=0, last_nonce=3, at=1)
        store.workers.report(
            Incident(worker="w0", at=2, reason="wrong", in_doubt=4, commits=[commit])
        )
        (incident,) = body(api, STATUS)["incidents"]
        assert (incident["worker"], incident["reason"], incident["in_doubt"]) == ("w0", "wrong", 4)
        assert incident["commits"] == [commit.model_dump(mode="json")]

    def test_numbers_that_json_lacks_are_null(self, api: TestClient, store: Store) -> None:
        """A NaN or an infinity that got into Redis doesn't reach a strict JSON parser."""
        live(store, rate_per_second="nan", busy="inf")
        text = api.get(STATUS).text
        assert "NaN" not in text
        assert "Infinity" not in text
        (worker,) = body(api, STATUS)["workers"]
        assert (worker["rate_per_second"], worker["busy"]) == (None, None)


class TestOverview:
    """What the page shows."""

    def test_it_is_the_store_s(self, api: TestClient, store: Store) -> None:
        """All fields, but for the clock."""
        find(store, [(1, 1.25)])
        live(store, vocab_size="100")
        found = body(api, OVERVIEW)
        kept = store.overview().model_dump(mode="json")
        assert {**found, "at": 0} == {**kept, "at": 0}
        assert found["at"] <= kept["at"]

    def test_it_says_what_share_to_expect(self, api: TestClient, store: Store) -> None:
        """By the formula that r_target is chosen by, once a vocabulary is known."""
        find(store, [(1, 1.25)])
        assert body(api, OVERVIEW)["expected_share"] is None
        live(store, vocab_size="100")
        found = body(api, OVERVIEW)
        assert found["valid_below"] == CONFIG.r_target
        assert r_target_for(found["expected_share"], 100) == pytest.approx(CONFIG.r_target)


class TestRounds:
    """Rounds that are still kept."""

    def test_a_replaced_round_is_still_shown(self, api: TestClient, store: Store) -> None:
        """Given two rounds, each is found by its id."""
        find(store, [(1, 1.25)], "first")
        find(store, [(2, 0.5)], "second")
        found = body(api, "/api/v1/pow/rounds/first")
        assert (found["state"], found["valid_nonces"]) == ("STOPPED", [1])
        assert body(api, "/api/v1/pow/rounds/second")["valid_nonces"] == [2]

    def test_an_unknown_round_is_not_found(self, api: TestClient) -> None:
        """The answer names it."""
        found = body(api, "/api/v1/pow/rounds/nowhere", 404)
        assert found["detail"] == "round nowhere is unknown, or ended too long ago"

    @pytest.mark.parametrize("round_id", ["a b", "a:b", "a%0A", "x" * 65])
    def test_what_is_no_id_is_refused(self, api: TestClient, round_id: str) -> None:
        """An id is part of key names, so others never reach Redis."""
        body(api, f"/api/v1/pow/rounds/{round_id}", 422)


class TestNonces:
    """Pages of valid nonces."""

    def test_pages_give_all_in_order_of_discovery(self, api: TestClient, store: Store) -> None:
        """Given unordered nonces, when followed by `next`, each comes once, as it was found."""
        valid = [(9, 0.9), (2, 0.2), (7, 0.7), (4, 0.4), (5, 0.5)]
        round_id = find(store, valid)
        seen: list[tuple[int, float]] = []
        start = 0
        while page := body(api, NONCES, round_id=round_id, start=start, limit=2):
            if not page["nonces"]:
                break
            seen += zip(page["nonces"], page["distances"], strict=True)
            start = page["next"]
        assert seen == valid
        assert (page["start"], page["next"], page["total_valid"]) == (5, 5, 5)

    def test_what_is_new_comes_from_next_on(self, api: TestClient, store: Store) -> None:
        """A poller that has read all finds only what came since."""
        round_id = find(store, [(1, 1.25)])
        after = body(api, NONCES, round_id=round_id)["next"]
        claim = store.rounds.claim("w", "later")
        assert claim
        store.rounds.commit(claim, Computed(checked=4, valid=[(6, "0.5")]))
        assert body(api, NONCES, round_id=round_id, start=after)["nonces"] == [6]

    def test_the_largest_nonce_and_every_digit_survive(self, api: TestClient, store: Store) -> None:
        """Neither Redis' Lua nor JSON rounds a nonce or a distance."""
        find(store, [(MAX_NONCE, 0.1 + 0.2)])
        page = body(api, NONCES)
        assert (page["nonces"], page["distances"]) == ([MAX_NONCE], [0.1 + 0.2])

    def test_without_an_id_it_is_the_current_round(self, api: TestClient, store: Store) -> None:
        """The page says which round that is."""
        find(store, [(1, 1.25)], "old")
        find(store, [(2, 0.5)], "new")
        page = body(api, NONCES)
        assert (page["round_id"], page["state"], page["nonces"]) == ("new", "GENERATING", [2])

    def test_before_the_first_round_the_page_is_empty(self, api: TestClient) -> None:
        """A poller that is early goes on from the start."""
        page = body(api, NONCES)
        assert (page["round_id"], page["state"], page["nonces"]) == ("", "IDLE", [])
        assert page["next"] == 0

    def test_an_unknown_round_is_not_found(self, api: TestClient) -> None:
        """It is not taken for one that found nothing."""
        assert "nowhere" in body(api, NONCES, 404, round_id="nowhere")["detail"]

    @pytest.mark.parametrize(
        "query",
        [{"start": -1}, {"start": 10**18}, {"limit": 0}, {"limit": 10_001}, {"round_id": "a:b"}],
        ids=str,
    )
    def test_bad_pages_are_refused(self, api: TestClient, query: dict[str, Any]) -> None:
        """What is out of bounds is the asker's mistake."""
        body(api, NONCES, 422, **query)


class TestHealth:
    """Whether the process lives, and whether the node can compute."""

    def test_ready_needs_a_worker(self, api: TestClient) -> None:
        """Given no worker, it says so and when to ask again."""
        response = api.get("/readyz")
        assert response.status_code == 503
        assert response.json() == {"detail": "no worker is ready"}
        assert int(response.headers["Retry-After"]) > 0

    def test_one_ready_worker_is_enough(self, api: TestClient, store: Store) -> None:
        """A worker registers when it has loaded its model."""
        live(store, "a", "generating")
        assert body(api, "/readyz") == {"workers": 1}

    def test_it_lives_without_redis(self, api: TestClient, server: fakeredis.FakeServer) -> None:
        """A restart of this process would not bring Redis back."""
        server.connected = False
        assert body(api, "/livez") == {"status": "alive"}


class TestRedisAway:
    """An outage is said, and passes."""

    @pytest.mark.parametrize("url", [STATUS, OVERVIEW, "/api/v1/pow/rounds/a", NONCES, "/readyz"])
    def test_every_read_says_unavailable(
        self, api: TestClient, server: fakeredis.FakeServer, url: str
    ) -> None:
        """503 with a sentence and the time to ask again."""
        server.connected = False
        response = api.get(url)
        assert response.status_code == 503
        assert response.json()["detail"].startswith("Redis: ")
        assert int(response.headers["Retry-After"]) > 0

    def test_it_answers_again_when_redis_does(
        self, api: TestClient, server: fakeredis.FakeServer
    ) -> None:
        """Nothing has to be restarted."""
        server.connected = False
        body(api, STATUS, 503)
        server.connected = True
        body(api, STATUS)

    def test_an_app_of_its_own_starts_without_redis(self) -> None:
        """Given a port that nobody listens on, it starts and says so without waiting."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            settings = load_settings({}, redis_url=f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
            with TestClient(create_app(settings)) as client:
                body(client, STATUS, 503)
                body(client, "/livez")

    def test_the_password_is_not_told(self) -> None:
        """An outage's text is for everybody."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            settings = load_settings({}, redis_url=f"redis://:hunter2@127.0.0.1:{port}/0")
            with TestClient(create_app(settings)) as client:
                assert "hunter2" not in client.get(STATUS).text


class TestReadOnly:
    """Nothing here changes a round."""

    def test_every_route_is_a_get(self, api: TestClient) -> None:
        """Commands go through Celery alone."""
        paths = body(api, "/openapi.json")["paths"]
        assert {verb for path in paths.values() for verb in path} == {"get"}
        assert api.post(STATUS).status_code == 405

    def test_reading_leaves_redis_as_it_was(
        self, api: TestClient, store: Store, redis: Client
    ) -> None:
        """Given a round and a worker, no key appears, goes or changes."""
        round_id = find(store, [(1, 1.25)])
        live(store)
        before = {key: redis.dump(key) for key in redis.scan_iter()}
        for url in (
            STATUS,
            OVERVIEW,
            f"/api/v1/pow/rounds/{round_id}",
            NONCES,
            "/readyz",
            "/livez",
        ):
            body(api, url)
        assert {key: redis.dump(key) for key in redis.scan_iter()} == before
        assert Keys("test")("status") in before

    def test_every_route_is_described(self, api: TestClient) -> None:
        """OpenAPI is the manual of those who write clients."""
        paths = body(api, "/openapi.json")["paths"]
        assert all(path["get"]["description"] for path in paths.values())
        assert "503" in paths[STATUS]["get"]["responses"]
        assert "404" in paths[NONCES]["get"]["responses"]


TOKENS = ("first-token-0123456789", "second-token-0123456789")


class TestTokens:
    """With POC_API_TOKENS the rounds are for those who have one."""

    @pytest.fixture
    def api(self, store: Store) -> Iterator[TestClient]:
        settings = load_settings({}, namespace="test", api_tokens=",".join(TOKENS))
        with TestClient(create_app(settings, store)) as client:
            yield client

    @pytest.mark.parametrize("url", [STATUS, OVERVIEW, EVENTS, NONCES, "/api/v1/pow/rounds/r1"])
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "Bearer",
            "Bearer ",
            f"Bearer {TOKENS[0]}x",
            f"Bearer {TOKENS[0][:-1]}",
            f"Bearer {','.join(TOKENS)}",
            f"Basic {TOKENS[0]}",
            TOKENS[0],
            "Bearer \u00fc".encode(),
        ],
    )
    def test_without_a_token_nothing_is_told(
        self, api: TestClient, url: str, header: str | bytes | None
    ) -> None:
        headers = {} if header is None else {"Authorization": header}
        response = api.get(url, headers=headers)  # type: ignore[arg-type]
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert set(response.json()) == {"detail"}
        assert not any(token in response.text for token in TOKENS)

    @pytest.mark.parametrize("token", TOKENS)
    def test_each_token_counts(self, api: TestClient, token: str) -> None:
        """So a new one can be given out before the old one is taken away."""
        response = api.get(STATUS, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 200

    @pytest.mark.parametrize("url", ["/", "/livez", "/docs", "/redoc", "/openapi.json"])
    def test_health_and_description_stay_open(self, api: TestClient, url: str) -> None:
        """Supervisors have no token, and the page and the description tell what all can read."""
        assert api.get(url).status_code == 200

    def test_readiness_stays_open(self, api: TestClient, store: Store) -> None:
        assert api.get("/readyz").status_code == 503
        live(store)
        assert api.get("/readyz").status_code == 200


class TestLimits:
    """What is refused before anything is looked at."""

    @pytest.fixture
    def api(self, store: Store) -> Iterator[TestClient]:
        """Ten requests a second."""
        settings = load_settings({}, namespace="test", api_rate=10)
        with TestClient(create_app(settings, store)) as client:
            yield client

    def test_who_asks_too_often_is_told_to_wait(
        self, api: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And is answered again in the next second; /livez alone is always answered."""
        now = 1000.0
        monkeypatch.setattr("shared.serving.monotonic", lambda: now)
        answers = [api.get(STATUS) for _ in range(12)]
        assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
        assert answers[-1].headers["Retry-After"] == "1"
        assert api.get("/livez").status_code == 200
        assert api.get("/readyz").status_code == api.get("/docs").status_code == 429
        now += 1.1
        assert api.get(STATUS).status_code == 200

    def test_another_address_is_not_held_up(self, api: TestClient, store: Store) -> None:
        assert {api.get(STATUS).status_code for _ in range(25)} == {200, 429}
        with TestClient(api.app, client=("10.0.0.9", 1)) as other:
            assert other.get(STATUS).status_code == 200

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
    def test_a_body_is_refused(self, api: TestClient, method: str) -> None:
        """No route reads one, so none has to be received."""
        response = api.request(method, STATUS, content=b"x" * 1000)
        assert response.status_code == 413
        assert response.headers["Connection"] == "close"

    def test_a_body_of_unknown_length_is_refused(self, api: TestClient) -> None:
        response = api.request("GET", STATUS, content=iter([b"x"]))
        assert response.status_code == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "node.example"])
def test_it_does_not_listen_to_the_world_without_tokens(host: str) -> None:
    """Said before a port is taken, with what to do."""
    with pytest.raises(ConfigError, match=rf"POC_API_HOST={host}: .*set POC_API_TOKENS"):
        serve(load_settings({}, api_host=host))


@pytest.mark.parametrize("host", ["ü..x", "a" * 64])
def test_a_host_that_can_be_none_is_named(host: str) -> None:
    """Python's own error about the first is none of a socket."""
    settings = load_settings({}, api_host=host, api_public=True)
    with pytest.raises(ConfigError, match=f"can't listen on {host} .it is no name of a host"):
        serve(settings)
