"""Which of the jobs that wait go through the device next."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines import Job
from worker.engines.vllm.backlog import Backlog, Submitted

TILE = 4


def job(*nonces: int, key: str = "k", alone: bool = False) -> Job:
    return Job("b", key, nonces, seq_len=8, alone=alone)


def backlog_of(*jobs: Job) -> Backlog:
    backlog = Backlog(lambda _: TILE)
    for each in jobs:
        backlog.add(Submitted(each, Future()))
    return backlog


def taken(backlog: Backlog) -> list[tuple[int, ...]]:
    return [each.job.nonces for each in backlog.take()]


def all_taken(backlog: Backlog) -> list[list[tuple[int, ...]]]:
    found = []
    while backlog:
        found.append(taken(backlog))
    return found


def test_an_empty_one_has_nothing() -> None:
    backlog = backlog_of()
    assert not backlog
    assert not backlog.is_full
    assert not backlog.is_alone
    assert backlog.take() == []


def test_jobs_go_together_until_a_tile_is_full() -> None:
    """In their order, and none is torn apart."""
    backlog = backlog_of(job(1, 2), job(3), job(4, 5), job(6, 7), job(8))
    assert all_taken(backlog) == [[(1, 2), (3,)], [(4, 5), (6, 7)], [(8,)]]


@pytest.mark.parametrize(
    ("jobs", "full"),
    [
        ([job(1)], False),
        ([job(1), job(2, 3, 4)], True),  # to the last place
        ([job(1), job(2, 3, 4, 5)], True),  # the next has no room
        ([job(1), job(2, key="other")], True),  # the next has another shape
        ([job(1), job(2, alone=True)], True),
        ([job(1, alone=True)], True),
        ([job(*range(9))], True),  # more than a tile
    ],
)
def test_it_is_full_once_nothing_would_go_along(jobs: list[Job], full: bool) -> None:
    """Then it is no use to wait for more."""
    assert backlog_of(*jobs).is_full == full


def test_a_job_that_is_larger_than_a_tile_goes_by_itself() -> None:
    assert all_taken(backlog_of(job(*range(9)), job(10))) == [[tuple(range(9))], [(10,)]]


def test_another_shape_is_not_overtaken() -> None:
    """Given that a later job would fit."""
    backlog = backlog_of(job(1), job(2, key="other"), job(3))
    assert all_taken(backlog) == [[(1,)], [(2,)], [(3,)]]


def test_one_that_is_to_be_alone_is() -> None:
    """Neither those before it nor those behind it go along, nor another such one."""
    backlog = backlog_of(job(1), job(2, alone=True), job(3, alone=True), job(4))
    alone = []
    while backlog:
        alone.append((backlog.is_alone, taken(backlog)))
    assert alone == [(False, [(1,)]), (True, [(2,)]), (True, [(3,)]), (False, [(4,)])]


def test_what_failed_together_goes_first_and_one_by_one() -> None:
    """In its order, with the futures that it had."""
    backlog = backlog_of(job(1), job(2), job(3, 4), job(5))
    failed = backlog.take()
    backlog.put_back(failed)
    again = [backlog.take() for _ in failed]
    assert [[each.job for each in parts] for parts in again] == [
        [replace(each.job, alone=True)] for each in failed
    ]
    assert [parts[0].future for parts in again] == [each.future for each in failed]
    assert taken(backlog) == [(5,)]


def test_all_are_taken_at_the_end() -> None:
    backlog = backlog_of(job(1), job(2, alone=True), job(3, key="other"))
    assert [each.job.nonces for each in backlog.take_all()] == [(1,), (2,), (3,)]
    assert not backlog


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from("ab"), st.booleans()).map(
            lambda given: job(*range(given[0]), key=given[1], alone=given[2])
        ),
        max_size=12,
    )
)
def test_any_jobs_all_go_in_order_in_tiles_that_fit(jobs: list[Job]) -> None:
    """And two tiles in a row could not have been one."""
    backlog, tiles = backlog_of(*jobs), []
    while backlog:
        tiles.append([each.job for each in backlog.take()])
    assert [each for tile in tiles for each in tile] == jobs
    for tile in tiles:
        assert len(tile) == 1 or sum(len(each.nonces) for each in tile) <= TILE
        assert len({replace(each, nonces=()) for each in tile}) == 1
        assert len(tile) == 1 or not tile[0].alone
    for tile, (following, *_) in pairwise(tiles):
        together = sum(len(each.nonces) for each in (*tile, following))
        same = replace(tile[0], nonces=()) == replace(following, nonces=())
        assert tile[0].alone or not same or together > TILE
