"""How rounds, workers and verdicts look on a terminal. Data goes to stdout, news to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from shared.config import PoCState, r_target_for, share_below
from shared.schemes import Proof, Verdict
from shared.status import (
    GpuReading,
    Incident,
    KeptRound,
    OutboxStatus,
    RoundStatus,
    WorkerStatus,
    printable,
)

if TYPE_CHECKING:
    from shared.receipt import Receipt
    from worker.tools.doctor import Finding

out = Console()
news = Console(stderr=True)


@contextmanager
def out_alone() -> Iterator[None]:
    """Send what is written to standard output meanwhile to standard error: vLLM logs to it.

    Processes that are started in it keep that.
    """
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(ours, 1)
        os.close(ours)


#: Incidents on one screen.
INCIDENTS = 3

_STATE_STYLES = {"GENERATING": "bold green", "VALIDATING": "bold cyan", "STOPPED": "yellow"}
#: Degrees Celsius from which a GPU is shown as hot.
HOT = 85


def expectation(status: RoundStatus, workers: Sequence[WorkerStatus]) -> str:
    """What share of the nonces to expect to be valid, and what to do if that is none or all.

    Empty without a worker whose model has a known vocabulary, and where every nonce counts.
    """
    vocab_size = max((each.vocab_size for each in workers), default=0)
    valid_below = status.valid_below
    if not vocab_size or not status.has_distances:
        return ""
    share = share_below(valid_below, vocab_size)
    if share < 1e-6 or share > 0.999:
        which = "none" if share < 0.5 else "all"
        better = r_target_for(0.001, vocab_size)
        return (
            f"expect {which} below {valid_below:g}; an r_target of {better:.4f} takes about one in "
            "a thousand"
        )
    return f"expect about {share:.2g} of all" if share < 0.001 else f"expect about {share:.1%}"


def round_table(status: RoundStatus, workers: Sequence[WorkerStatus] = ()) -> RenderableType:
    """One round; with `workers`, what share of valid nonces to expect of their model."""
    if not status.round_id:
        how = "there was no round yet. Start one: poc generate --help"
        return Text(f"{status.state}: {how}", style="dim")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows: dict[str, Any] = {
        "state": Text(status.state, style=_STATE_STYLES.get(status.state, "bold")),
        "round": status.round_id,
        "block": f"{printable(status.block_hash)} at {status.block_height}",
        "public key": printable(status.public_key),
        "node": f"{status.node_id} of {status.node_count}",
        "checked": f"{status.total_checked:,}",
        "valid": f"{status.total_valid:,}  ({_what_counts(status)})",
        "": expectation(status, workers),
        "failed": f"{status.total_failed:,}" if status.total_failed else "",
        "ends": _ends(status),
        "rate": f"{status.rate_per_second:,.1f}/s, recently {status.recent_rate_per_second:,.1f}/s",
        "elapsed": f"{status.elapsed_seconds:,.1f} s ({status.generating_seconds:,.1f} generating)",
        "callbacks": _callbacks(status),
        "newest valid": ", ".join(
            f"{nonce} ({_proof(proof)})"
            for nonce, proof in zip(status.valid_nonces[-3:], status.proofs[-3:], strict=True)
        ),
        "error": Text(status.error, style="bold red"),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def _what_counts(status: RoundStatus) -> str:
    if status.has_distances:
        return f"distance below {status.valid_below:g}"
    return status.title_of_terms


def _proof(proof: Proof) -> str:
    return f"{proof:.4f}" if isinstance(proof, float) else printable(proof)


def generating(
    round_id: str, status: RoundStatus, workers: Sequence[WorkerStatus]
) -> RenderableType:
    """That a round generates, what to expect of it, and what to do next."""
    expected = expectation(status, workers)
    of_all = f": {expected}" if expected else ""
    ends = f"  it ends by itself {_ends(status)}\n" if _ends(status) else ""
    return Text(
        f"generating in round {round_id}{of_all}\n{ends}"
        "  poc status --watch   follows it\n"
        "  poc stop             ends it"
    )


def rounds_table(kept: Sequence[KeptRound]) -> RenderableType:
    """The rounds that can still be looked at."""
    if not kept:
        return Text("no round is kept. Start one: poc generate --help", style="dim")
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("round", no_wrap=True)  # to be copied whole
    table.add_column("block", overflow="fold")
    for heading in ("checked", "valid", "rate/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading, least in (
        ("began", "HH:MM:SS"),
        ("ended", "GENERATING"),
        ("kept until", "HH:MM:SS"),
    ):
        table.add_column(heading, min_width=len(least))
    for each in kept:
        ended = each.state == PoCState.STOPPED
        table.add_row(
            each.round_id,
            Text(f"{_brief(printable(each.block_hash))} at {each.block_height}"),
            f"{each.total_checked:,}",
            f"{each.total_valid:,}",
            f"{each.rate_per_second:,.1f}",
            _moment(each.started_at),
            _moment(each.updated_at)
            if ended
            else Text(each.state, style=_STATE_STYLES.get(each.state, "bold")),
            _moment(each.kept_until) if each.kept_until else "current",
        )
    return table


def _brief(text: str, ends: int = 4) -> str:
    """A long id by its two ends."""
    return text if len(text) <= 2 * ends + 1 else f"{text[:ends]}…{text[-ends:]}"


def _moment(unix_time: float) -> str:
    return f"{datetime.fromtimestamp(unix_time).astimezone():%m-%d %H:%M:%S}"


def _ends(status: RoundStatus) -> str:
    """Where a generation that goes on ends by itself."""
    if status.state != PoCState.GENERATING or not (status.until_valid or status.ends_at):
        return ""
    left = f": {_left(status)}" if status.seconds_left is not None else ""
    return f"{' or '.join(_asked(status))}{left}"


def _asked(status: RoundStatus) -> Iterator[str]:
    if status.until_valid:
        yield f"at {status.until_valid:,} valid nonces"
    if status.ends_at:
        yield f"at {datetime.fromtimestamp(status.ends_at).astimezone():%H:%M:%S}"


def _left(status: RoundStatus) -> str:
    """Empty if nobody can tell."""
    left = status.seconds_left
    return "" if left is None else f"about {timedelta(seconds=round(left))} left"


def _callbacks(status: RoundStatus) -> str:
    counts = {
        "pending": status.callbacks_pending,
        "delivered": status.callbacks_delivered,
        "refused": status.callbacks_refused,
    }
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{text}: {status.callback_error}" if status.callback_error else text


def workers_table(workers: Sequence[WorkerStatus]) -> RenderableType:
    """Who lives."""
    if not workers:
        return Text("no worker lives here. Start one: poc worker --help", style="yellow")
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("worker", "state", "device", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("rate/s", "busy", "computed"):
        table.add_column(heading, justify="right")
    with_gpus = any(each.gpus for each in workers)
    if with_gpus:
        table.add_column("GPU", overflow="fold")
    for each in workers:
        table.add_row(
            Text(each.name),
            Text(each.state, style=_STATE_STYLES.get(each.state.upper(), "")),
            *map(Text, (each.device, each.model)),
            f"{each.rate_per_second:,.1f}",
            f"{each.busy:.0%}",
            f"{each.computed:,}",
            *([Text("\n").join(map(_gpu, each.gpus))] if with_gpus else []),
        )
    return table


def _gpu(reading: GpuReading) -> Text:
    text = Text()
    if reading.utilization is not None:
        text.append(f"{reading.utilization:.0%}  ")
    if reading.memory_used_bytes is not None and reading.memory_total_bytes:
        text.append(f"{reading.memory_used_bytes / 2**30:.0f} of ")
        text.append(f"{reading.memory_total_bytes / 2**30:.0f} GiB  ")
    if reading.temperature_celsius is not None:
        hot = reading.temperature_celsius >= HOT
        text.append(f"{reading.temperature_celsius:.0f} °C  ", style="bold red" if hot else "")
    if reading.power_watts is not None:
        text.append(f"{reading.power_watts:.0f} W")
    text.rstrip()
    return text


def incidents_table(incidents: Sequence[Incident]) -> RenderableType:
    """The newest workers that had to end, and what of them is in doubt."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("had to end", "when", "why"):
        table.add_column(heading, overflow="fold")
    for each in incidents[:INCIDENTS]:
        why = Text(each.reason, style="bold red")
        table.add_row(Text(each.worker), Text(_moment(each.at)), why)
        if each.in_doubt:
            table.add_row("", "", Text(f"{each.in_doubt:,} nonces in doubt: {_commits(each)}"))
    return table


def _commits(incident: Incident) -> str:
    return ", ".join(
        f"{each.first_nonce} to {each.last_nonce} "
        + (f"of round {each.round_id}" if each.round_id else f"of validation {each.validation}")
        for each in reversed(incident.commits)
    )


class Seen(NamedTuple):
    """A node at one moment."""

    round: RoundStatus
    #: Those that live, and those that had to end.
    workers: Sequence[WorkerStatus]
    incidents: Sequence[Incident]
    callbacks: OutboxStatus = OutboxStatus()


def node_view(seen: Seen | None, trouble: str = "") -> RenderableType:
    """A namespace as it was `seen` last, and what keeps us from seeing it now."""
    if seen is None:
        return Text(f"nothing seen yet: {trouble}", style="bold red")
    parts = [round_table(seen.round, seen.workers), Text(), workers_table(seen.workers)]
    if seen.callbacks.waiting:
        parts += [Text(), Text(_waiting(seen.callbacks), style="yellow")]
    if seen.incidents:
        parts += [Text(), incidents_table(seen.incidents)]
    if trouble:
        parts += [Text(), Text(f"shown as last seen: {trouble}", style="bold red")]
    return Group(*parts)


def _waiting(callbacks: OutboxStatus) -> str:
    text = (
        f"{callbacks.waiting:,} callbacks of all rounds wait, the oldest for "
        f"{callbacks.oldest_seconds:,.0f} s"
    )
    return f"{text}; the last failure: {callbacks.error}" if callbacks.error else text


def verdict_table(verdict: Verdict) -> RenderableType:
    """What a validation came to."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    honest = Text("honest", style="bold green")
    there = sum(proof is not None for proof in verdict.proofs)
    rows: dict[str, Any] = {
        "verdict": f"nothing was claimed; {there} of {len(verdict)} nonces have a proof: --json "
        "prints them",
        "invalid": "",
        "probability": "",
        "judged by": verdict.limits,
        "block": f"{printable(verdict.block_hash)} at {verdict.block_height}",
        "public key": printable(verdict.public_key),
        "computed by": ", ".join(f"{name} {value}" for name, value in verdict.profile.items()),
    }
    if ended := verdict.ended:
        rows |= {
            "verdict": Text("FRAUD", style="bold red") if ended.fraud_detected else honest,
            "invalid": f"{ended.n_invalid} of {ended.nonces} nonces",
            "probability": f"{ended.probability_honest:.3g} that an honest node has so many",
            "apart": ""
            if ended.apart_mean is None
            else f"{ended.apart_mean:.2g} on average, {ended.apart_max:.2g} at most",
        }
    for name, value in rows.items():
        if value:
            table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def receipt_table(receipt: Receipt, signer: str) -> RenderableType:
    """The main facts of a receipt that `signer` has signed. Whoever wrote it may mean no good."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    status, nonces = receipt.round, receipt.nonces
    made = datetime.fromtimestamp(receipt.made_at).astimezone()
    rows: dict[str, Any] = {
        "verdict": Text.assemble(("genuine", "bold green"), f", signed by {signer}"),
        "made": f"{made:%Y-%m-%d %H:%M:%S} by {receipt.software}, namespace {receipt.namespace}",
        "round": f"{status.round_id}, {status.state}",
        "block": f"{status.block_hash} at {status.block_height}",
        "public key": f"{status.public_key}, node {status.node_id} of {status.node_count}",
        "valid": f"{status.total_valid:,} of {status.total_checked:,} ({_what_counts(status)})",
        "failed": f"{status.total_failed:,}" if status.total_failed else "",
        "nonces": f"{nonces.count:,} with SHA-256 {nonces.sha256}",
        "rate": f"{status.rate_per_second:,.1f}/s for {status.elapsed_seconds:,.1f} s",
        "callbacks": _callbacks(status),
        "workers": "; ".join(
            f"{each.worker} on {', '.join(gpu.name for gpu in each.gpus) or each.device}"
            for each in receipt.workers
        ),
        "incidents": "; ".join(f"{each.worker}: {each.reason}" for each in receipt.incidents),
        "error": status.error,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value if isinstance(value, Text) else Text(printable(value)))
    return table


def findings_table(findings: Sequence[Finding]) -> RenderableType:
    """What the doctor found, each with its remedy."""
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for each in findings:
        table.add_row(Text(each.level, style=styles[each.level]), each.name, Text(each.text))
        if each.remedy:
            table.add_row("", "", Text(f"→ {each.remedy}", style="dim"))
    return table


class RoundProgress:
    """One line that follows a round; give its `update` to `Ticket.wait`."""

    def __init__(self, line: Progress) -> None:
        self._line, self._task = line, line.add_task("waiting for the first batch", total=None)
        self._first: RoundStatus | None = None

    def update(self, progress: dict[str, Any]) -> None:
        """Show the counters that a ticket's progress carries."""
        status = RoundStatus.model_validate({"state": PoCState.GENERATING} | progress)
        self._first = self._first or status
        left = f", {_left(status)}" if _left(status) else ""
        self._line.update(
            self._task,
            description=f"round {status.round_id}: {status.total_checked:,} checked, "
            f"{status.total_valid:,} valid, {status.rate_per_second:,.1f}/s{left}",
            completed=share_done(self._first, status),
            total=1.0,
        )


def share_done(first: RoundStatus, now: RoundStatus) -> float:
    """How much of the way to its end a round has gone, 0 to 1, since it was `first` seen.

    The count is the round's. The time is that since the first look.
    """
    of_count = now.total_valid / now.until_valid if now.until_valid else 0.0
    seconds = now.ends_at - first.updated_at
    of_time = (now.updated_at - first.updated_at) / seconds if now.ends_at and seconds > 0 else 0.0
    return min(1.0, max(of_count, of_time))


@contextmanager
def following_round(*, ends: bool) -> Iterator[RoundProgress]:
    """Show a round's progress while the block runs; with a bar if it `ends` by itself."""
    bar = (BarColumn(20),) if ends else ()
    with _following(SpinnerColumn(), TextColumn("{task.description}"), *bar) as line:
        yield RoundProgress(line)


class BatchProgress:
    """A bar that follows a validation."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._task = bar, bar.add_task("recomputing", total=None)

    def update(self, progress: dict[str, Any]) -> None:
        """Show how many nonces are done."""
        self._bar.update(self._task, completed=progress["done"], total=progress["total"])


@contextmanager
def following_batch() -> Iterator[BatchProgress]:
    """Show a validation's progress while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with _following(*columns, TimeElapsedColumn()) as bar:
        yield BatchProgress(bar)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of `total` nonces while the block runs; give what it yields how many more are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with _following(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _following(*columns: ProgressColumn) -> Progress:
    """What moves while something is waited for; nothing at all in a log or a pipe."""
    return Progress(*columns, console=news, transient=True, disable=not news.is_terminal)
