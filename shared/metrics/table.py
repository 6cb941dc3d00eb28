"""What Prometheus is told of a node: each metric once, in one table.

`docs/metrics.md` holds it (`python -m shared.metrics` prints it). A name that ends in `_total` is
a counter, all others are gauges. No label tells a round: rounds come without end, and each would
leave its series behind.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.config import PoCState
from shared.metrics.metric import Metric, Series, by, by_gpu, by_worker, gpus, one
from shared.overview import Overview

#: Labels that are there from the start: what first appears with a 1 is no increase to Prometheus.
OUTCOMES = ("honest", "fraud", "error", "cancelled", "computed")
REASONS = ("deadline", "never_sent", "other")
_WORKER_STATES = ("idle", "generating", "validating")


def _round_states(seen: Overview) -> Iterator[Series]:
    for state in PoCState:
        yield (state.value,), seen.node.state == state


def _worker_states(seen: Overview) -> Iterator[Series]:
    for worker in seen.node.workers:
        for state in _WORKER_STATES:
            yield (worker.name, state), worker.state == state


def _worker_infos(seen: Overview) -> Iterator[Series]:
    for each in seen.node.workers:
        yield (each.name, each.host, each.device, each.model, each.fingerprint), 1


def _gpu_infos(seen: Overview) -> Iterator[Series]:
    for labels, gpu in gpus(seen):
        yield (*labels, gpu.name), 1


def _age(seen: Overview, at: float) -> float | None:
    return max(0.0, seen.at - at) if at else None


#: Told at every scrape, also while Redis is away.
BUILD = Metric("poc_build_info", "Always 1: what runs here", labels=("version", "namespace"))
REDIS_UP = Metric("poc_redis_up", "Whether Redis answered; without it only this and build are told")

_OF_WORKER, _OF_GPU = ("worker",), ("worker", "gpu")

OF_A_NODE: tuple[Metric, ...] = (
    # Counts of all rounds: they outlive each of them.
    Metric(
        "poc_nonces_checked_total",
        "Nonces computed and counted, each once, in all rounds",
        one(lambda seen: seen.totals.checked),
    ),
    Metric(
        "poc_nonces_valid_total",
        "Those of them that are valid",
        one(lambda seen: seen.totals.valid),
    ),
    Metric(
        "poc_nonces_failed_total",
        "Nonces without a finite distance, and those of batches that failed too often",
        one(lambda seen: seen.totals.failed),
    ),
    Metric(
        "poc_rounds_replaced_total",
        "Rounds that another one followed",
        one(lambda seen: seen.totals.rounds),
    ),
    Metric(
        "poc_claims_taken_over_total",
        "Batches of dead or hung workers that others took over",
        one(lambda seen: seen.totals.taken_over),
    ),
    Metric(
        "poc_incidents_total",
        "Workers that had to end, as the status lists them",
        one(lambda seen: seen.totals.incidents),
    ),
    Metric(
        "poc_validations_total",
        f"Validations that ended, by outcome: {', '.join(OUTCOMES)}",
        by(lambda seen: seen.totals.validations, *OUTCOMES),
        labels=("outcome",),
    ),
    Metric(
        "poc_callbacks_delivered_total",
        "Callbacks that a receiver took",
        one(lambda seen: seen.totals.delivered),
    ),
    Metric(
        "poc_callbacks_refused_total",
        f"Callbacks that were given up, by reason: {', '.join(REASONS)}, or status_ and the number",
        by(lambda seen: seen.totals.refused, *REASONS),
        labels=("reason",),
    ),
    # The current round.
    Metric(
        "poc_round_state",
        f"1 for the state that the round is in, 0 for the others: {', '.join(PoCState)}",
        _round_states,
        labels=("state",),
    ),
    Metric(
        "poc_round_block_height",
        "Height of the round's block",
        one(lambda seen: seen.node.block_height),
    ),
    Metric(
        "poc_round_started_timestamp_seconds",
        "Unix time of the round's init; 0 before the first",
        one(lambda seen: seen.node.started_at),
    ),
    Metric(
        "poc_round_elapsed_seconds",
        "Time since the init, without that while STOPPED",
        one(lambda seen: seen.node.elapsed_seconds),
    ),
    Metric(
        "poc_round_generating_seconds",
        "Time that the round was GENERATING",
        one(lambda seen: seen.node.generating_seconds),
    ),
    Metric(
        "poc_round_checked_nonces",
        "Nonces of the round that were computed and counted",
        one(lambda seen: seen.node.total_checked),
    ),
    Metric(
        "poc_round_valid_nonces",
        "Those of them that are valid",
        one(lambda seen: seen.node.total_valid),
    ),
    Metric(
        "poc_round_failed_nonces",
        "Nonces of the round that could not be computed",
        one(lambda seen: seen.node.total_failed),
    ),
    Metric(
        "poc_round_nonces_per_second",
        "Rate of the last seconds of generating; 0 in other states",
        one(lambda seen: seen.node.recent_rate_per_second),
    ),
    Metric(
        "poc_round_r_target",
        "The round's r_target, a distance of 0 to 2",
        one(lambda seen: seen.node.r_target),
    ),
    Metric(
        "poc_round_expected_valid_ratio",
        "Share of valid nonces, 0 to 1, that a random model would give; absent without a worker",
        one(lambda seen: seen.expected_share),
    ),
    Metric(
        "poc_round_claimed_batches",
        "Batches that workers have, or that wait to be taken over from them",
        one(lambda seen: seen.claims),
    ),
    Metric(
        "poc_round_pending_callbacks",
        "Callbacks of the round that are not settled",
        one(lambda seen: seen.node.callbacks_pending),
    ),
    # What waits.
    Metric(
        "poc_queue_length", "Commands that wait for a worker", one(lambda seen: seen.queue_length)
    ),
    Metric(
        "poc_outbox_length",
        "Callbacks that wait for their delivery",
        one(lambda seen: seen.outbox_length),
    ),
    Metric(
        "poc_outbox_oldest_age_seconds",
        "How long the oldest of them has waited",
        one(lambda seen: seen.outbox_oldest_seconds),
    ),
    Metric(
        "poc_validations_open",
        "Validations that have no verdict yet",
        one(lambda seen: len(seen.node.validations)),
    ),
    # Workers. A counter begins at 0 when its worker does.
    Metric(
        "poc_workers",
        "Workers that live and have loaded their model",
        one(lambda seen: len(seen.node.workers)),
    ),
    Metric(
        "poc_worker_info",
        "Always 1: what a worker computes with",
        _worker_infos,
        labels=("worker", "host", "device", "model", "fingerprint"),
    ),
    Metric(
        "poc_worker_state",
        f"1 for what the worker does, 0 for the rest: {', '.join(_WORKER_STATES)}",
        _worker_states,
        labels=("worker", "state"),
    ),
    Metric(
        "poc_worker_heartbeat_age_seconds",
        "Time since its last heartbeat; after 30 s, or five of them, it is no longer told of",
        by_worker(lambda seen, each: _age(seen, each.heartbeat_at)),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_started_timestamp_seconds",
        "Unix time of the worker's start, by its own clock",
        by_worker(lambda _, each: each.started_at),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_nonces_per_second",
        "Rate over its last two heartbeats, or its last two batches if those took longer",
        by_worker(lambda _, each: each.rate_per_second),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_nonces_computed_total",
        "Nonces it computed, counted by a round or not",
        by_worker(lambda _, each: each.computed),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_batches_total",
        "Batches it computed, of rounds and validations",
        by_worker(lambda _, each: each.batches),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_busy_seconds_total",
        "Time that its device had batches; its rate is the busy share",
        by_worker(lambda _, each: each.busy_seconds),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_tile_sequences",
        "Sequences of one forward",
        by_worker(lambda _, each: each.tile),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_functional_checks_total",
        "Functional checks that it passed",
        by_worker(lambda _, each: each.checks),
        labels=_OF_WORKER,
    ),
    Metric(
        "poc_worker_functional_check_age_seconds",
        "Time since the last of them; its clock and Redis' may differ",
        by_worker(lambda seen, each: _age(seen, each.checked_at)),
        labels=_OF_WORKER,
    ),
    # GPUs, as NVML has them; what a card does not tell is absent.
    Metric(
        "poc_gpu_info",
        "Always 1: the name of a GPU; the label gpu is its UUID",
        _gpu_infos,
        labels=(*_OF_GPU, "name"),
    ),
    Metric(
        "poc_gpu_utilization_ratio",
        "Share of the time, 0 to 1, that kernels ran on it",
        by_gpu(lambda gpu: gpu.utilization),
        labels=_OF_GPU,
    ),
    Metric(
        "poc_gpu_memory_used_bytes",
        "Memory in use, by whomever",
        by_gpu(lambda gpu: gpu.memory_used_bytes),
        labels=_OF_GPU,
    ),
    Metric(
        "poc_gpu_memory_size_bytes",
        "Memory that it has",
        by_gpu(lambda gpu: gpu.memory_total_bytes),
        labels=_OF_GPU,
    ),
    Metric(
        "poc_gpu_temperature_celsius",
        "Temperature of the chip",
        by_gpu(lambda gpu: gpu.temperature_celsius),
        labels=_OF_GPU,
    ),
    Metric(
        "poc_gpu_power_watts",
        "Power that it takes",
        by_gpu(lambda gpu: gpu.power_watts),
        labels=_OF_GPU,
    ),
)

METRICS = (BUILD, REDIS_UP, *OF_A_NODE)


def table() -> str:
    """All metrics as a Markdown table, as docs/metrics.md has it."""
    rows = ["| metric | type | labels | what it is |", "| --- | --- | --- | --- |"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    return "\n".join(rows)
