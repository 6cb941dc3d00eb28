"""A receipt of a round, out of what the store keeps of it. It only reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from shared.errors import RoundMismatch, RoundNotInitialized
from shared.receipt import Device, Gpu, Nonces, Receipt
from shared.schemes import Proof
from shared.status import Incident, RoundStatus, WorkerStatus
from shared.store import Store
from shared.store.workers import KEEP_INCIDENTS
from shared.version import installed

#: Nonces that are read at a time.
PAGE = 10_000


def _silent(_: str) -> None:
    return


def receipt_of(
    store: Store, round_id: str | None = None, progress: Callable[[str], None] = _silent
) -> Receipt:
    """The receipt of a round that is kept, or of the current one.

    Of a round that generates it tells as much as was found when its status was read. A million
    nonces take up to a minute: `progress` is told how far it is, for a person. Raises
    `RoundMismatch` for a round that is not kept, or expires meanwhile.
    """
    found = store.rounds.status(round_id)
    if found is None:
        raise RoundMismatch(f"no round {round_id} is kept; `poc rounds` lists those that are")
    if not found.round_id:
        raise RoundNotInitialized
    course = store.course(found.round_id)
    return Receipt(
        software=f"poc-worker {installed()}".rstrip(),
        namespace=store.namespace,
        made_at=course.at,
        round=found,
        nonces=Nonces.of(_pages(store, found, progress)),
        history=course.history,
        histogram=course.histogram,
        workers=[_device(each) for each in store.workers.listing()],
        incidents=_during(found, store.workers.incidents(KEEP_INCIDENTS)),
    )


def _pages(
    store: Store, status: RoundStatus, progress: Callable[[str], None]
) -> Iterator[tuple[list[int], list[Proof]]]:
    """All nonces that the status counts, in order of discovery."""
    for start in range(0, status.total_valid, PAGE):
        progress(f"read {start:,} of {status.total_valid:,} valid nonces")
        wanted = min(PAGE, status.total_valid - start)
        page = store.rounds.found(status.round_id, start, wanted, status.scheme)
        if len(page[0]) != wanted:
            raise RoundMismatch(
                f"round {status.round_id} is no longer kept: its nonces went away while they were "
                "read; raise POC_KEEP_ROUNDS_S"
            )
        yield page


def _during(status: RoundStatus, incidents: Sequence[Incident]) -> list[Incident]:
    """Those that ended while the round went on, or committed something to it."""
    return [
        each
        for each in incidents
        if status.started_at <= each.at <= status.updated_at
        or any(commit.round_id == status.round_id for commit in each.commits)
    ]


def _device(worker: WorkerStatus) -> Device:
    return Device(
        worker=worker.name,
        device=worker.device,
        model=worker.model,
        fingerprint=worker.fingerprint,
        tile=worker.tile,
        gpus=[Gpu(name=each.name, uuid=each.uuid) for each in worker.gpus],
        versions=worker.versions,
    )
