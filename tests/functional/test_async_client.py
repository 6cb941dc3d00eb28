"""The client on an event loop, and what both clients read of a round, with a real worker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from exactness import ALL_VALID
from fake_engine import fake_distance
from shared.client import AsyncPoCClient, PoCClient
from shared.config import PoCState
from shared.data import ProofBatch
from shared.errors import InvalidRequest, RoundMismatch, StoreUnavailable
from shared.settings import Settings, load_settings
from shared.store import Store
from support import changed

pytestmark = pytest.mark.functional

HALF_VALID = changed(ALL_VALID, r_target=1.0)

Run = Callable[[Callable[[AsyncPoCClient], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture
def settings(shared_settings: Settings, shared_worker: Any) -> Settings:
    """One worker for all tests."""
    return shared_settings


@pytest.fixture
def run(settings: Settings) -> Run:
    """Run a coroutine with a client on an event loop of its own."""

    async def with_client(body: Callable[[AsyncPoCClient], Coroutine[Any, Any, Any]]) -> Any:
        async with contextlib.aclosing(AsyncPoCClient(settings)) as client, asyncio.timeout(60):
            return await body(client)

    return lambda body: asyncio.run(with_client(body))


def test_a_round_on_an_event_loop(run: Run) -> None:
    """Given 40 valid nonces that are wanted, they stream in while it runs, and all are told."""

    async def body(client: AsyncPoCClient) -> None:
        ticket = await client.generate(HALF_VALID, replace=True, until_valid=40)
        found = [each async for each in client.nonces(ticket.round_id)]
        ended = await ticket.wait()
        assert (ended.state, ended.until_valid) == (PoCState.STOPPED, 40)
        assert ended.total_valid == len(found) >= 40
        assert [each.nonce for each in found] == ended.valid_nonces
        assert all(each.distance == fake_distance("b", "k", each.nonce) for each in found)

    run(body)


def test_each_command_has_its_awaitable(run: Run) -> None:
    """Init, validate and stop give the status; a batch gets its verdict, a refusal is raised."""

    async def body(client: AsyncPoCClient) -> None:
        opened = await client.init(HALF_VALID, replace=True)
        assert (await client.validate(round_id=opened.round_id)).state == PoCState.VALIDATING
        assert (await client.stop(opened.round_id)).state == PoCState.STOPPED
        nonces = [n for n in range(50) if fake_distance("b", "k", n) < 1.0]
        dist = [fake_distance("b", "k", n) for n in nonces]
        ticket = await client.validate_batch(ProofBatch.of(HALF_VALID, nonces, dist))
        assert (await ticket.wait()).n_invalid == 0
        with pytest.raises(RoundMismatch):
            await client.generate(round_id="another")
        with pytest.raises(InvalidRequest, match="seconds"):
            await client.generate(seconds=-1)

    run(body)


def test_who_waits_holds_nothing_up(run: Run) -> None:
    """Given more tasks that wait than the loop has threads, then a command is answered."""

    async def body(client: AsyncPoCClient) -> None:
        ticket = await client.generate(HALF_VALID, replace=True)
        waiting = [asyncio.create_task(ticket.wait()) for _ in range(100)]
        stopped = await client.stop(ticket.round_id)
        ends = await asyncio.gather(*waiting)
        assert {each.total_checked for each in ends} == {stopped.total_checked}

    run(body)


def test_a_cancelled_wait_ends_nothing_else(run: Run, store: Store) -> None:
    """The round goes on, the ticket can be waited for again, and progress comes on the loop."""

    async def body(client: AsyncPoCClient) -> None:
        ticket = await client.generate(HALF_VALID, replace=True)
        told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        waiting = asyncio.create_task(ticket.wait(told.put_nowait))
        assert (await told.get())["round_id"] == ticket.round_id
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert store.status().state == PoCState.GENERATING
        await client.stop(ticket.round_id)
        assert (await ticket.wait()).state == PoCState.STOPPED

    run(body)


def test_a_stream_that_is_left_early_ends(run: Run) -> None:
    """Whoever has enough goes; from a later position on, the rest comes without the first."""

    async def body(client: AsyncPoCClient) -> None:
        ticket = await client.generate(HALF_VALID, replace=True)
        first = [each async for each in _first(client.nonces(ticket.round_id), 5)]
        await client.stop(ticket.round_id)
        rest = [each async for each in client.nonces(ticket.round_id, start=5)]
        ended = await ticket.wait()
        assert [each.nonce for each in first + rest] == ended.valid_nonces

    run(body)


async def _first(stream: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        async for each in stream:
            yield each
            if (count := count - 1) == 0:
                return


@pytest.fixture
def sync_client(settings: Settings) -> Any:
    with contextlib.closing(PoCClient(settings)) as client:
        yield client


def test_a_thread_streams_nonces_as_well(sync_client: PoCClient) -> None:
    """Each once, in the order of their discovery, until the round has ended."""
    ticket = sync_client.generate(HALF_VALID, replace=True)
    stream = sync_client.nonces(ticket.round_id)
    first = list(itertools.islice(stream, 3))
    sync_client.stop(ticket.round_id)
    assert [nonce for nonce, _ in [*first, *stream]] == ticket.wait(30).valid_nonces


def test_a_wait_by_count_or_by_time_ends_nothing(sync_client: PoCClient) -> None:
    """Given a round that goes on, then each wait returns with the status as it is then."""
    ticket = sync_client.generate(HALF_VALID, replace=True)
    enough = sync_client.wait(ticket.round_id, until_valid=10)
    assert enough.total_valid >= 10
    later = sync_client.wait(ticket.round_id, until_valid=10**6, seconds=0.1)
    assert later.state == PoCState.GENERATING
    stopped = sync_client.stop(ticket.round_id)
    assert sync_client.wait(ticket.round_id) == stopped


def test_a_round_that_is_not_kept_can_not_be_watched(sync_client: PoCClient) -> None:
    """It says so, instead of waiting for ever."""
    with pytest.raises(RoundMismatch, match="no round never is kept"):
        next(sync_client.nonces("never"))
    with pytest.raises(RoundMismatch, match="no round never is kept"):
        sync_client.wait("never")


def test_what_is_read_waits_for_redis_as_long_as_commands_do() -> None:
    """Nothing listens: the error comes after the timeout."""
    nowhere = load_settings({}, redis_url="redis://127.0.0.1:1/0")
    with contextlib.closing(PoCClient(nowhere, timeout=0.2)) as client:
        with pytest.raises(StoreUnavailable):
            client.wait("r")
        with pytest.raises(StoreUnavailable):
            next(client.nonces("r"))
