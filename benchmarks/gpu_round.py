"""A whole round on this machine's GPU: a real Redis server, a real worker, real commands.

    python benchmarks/gpu_round.py --shape 0.6B --seconds 30
    python benchmarks/gpu_round.py --shape 0.6B --make DIR      # the model alone

Starts the embedded Valkey and one `poc worker`, generates, reads what the worker and nvidia-smi
say of the GPU meanwhile, stops, and validates what was found. Without `--model` it makes a seeded
random Qwen3 of the given shape: real architecture and sizes, no download. Settings of the worker
come from the environment (POC_ENGINE, POC_VLLM_OPTIONS, ...). Prints a table, and JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from shared.client import PoCClient
from shared.config import PoCConfig, r_target_for
from shared.data import ProofBatch
from shared.settings import load_settings
from shared.store import Store
from worker.children import end, spawn, vanishing_directory
from worker.tools import script
from worker.tools.embedded import EmbeddedRedis
from worker.tools.extras import require_gpu
from worker.tools.make_model import SHAPES, make_model

#: The share of nonces that is valid, as in a real round, and how many of them are validated.
VALID_SHARE, SAMPLE = 0.01, 64
#: Seconds that are not measured: kernels are tuned and clocks settle.
WARM_UP_S = 5.0
#: Seconds that a worker may take to load.
LOAD_S = 580.0


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--model", type=Path, help="a checkpoint instead of a random one")
    parser.add_argument("--layers", type=script.size, help="of the random one, if not the shape's")
    parser.add_argument("--make", type=Path, metavar="DIR", help="write the random one, and end")
    parser.add_argument("--seconds", type=script.seconds, default=30.0)
    parser.add_argument("--batch-size", type=script.size, default=32)
    parser.add_argument("--seq-len", type=script.size, default=256)
    options = parser.parse_args()
    require_gpu("a round, and the model that it makes")
    shape = SHAPES[options.shape] | ({"layers": options.layers} if options.layers else {})
    if options.make:
        make_model(options.make, **shape, device="cuda")
        return
    with vanishing_directory("poc-gpu-round-") as directory, EmbeddedRedis() as server:
        model = options.model
        if model is None:
            _say(f"making a random Qwen3 of the {options.shape} shape")
            model = make_model(directory / "model", **shape, device="cuda")
        figures = run(server.url, model, directory, options)
    for name, value in figures.items():
        print(f"{name:28} {value}")
    print(json.dumps(figures))


def run(url: str, model: Path, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The round, and what was measured."""
    settings = load_settings(redis_url=url, namespace="gpu", model=str(model))
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    config = PoCConfig(
        block_hash="gpu-round",
        block_height=0,
        public_key="node",
        r_target=r_target_for(VALID_SHARE, vocab_size),
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        dist_tolerance=2e-4,
    )
    with (
        closing(Store(settings)) as store,
        closing(PoCClient(settings, timeout=60)) as client,
        _worker(url, model, directory) as worker,
    ):
        _say("loading")
        began = time.monotonic()
        while not store.status().workers:
            if worker.poll() is not None or time.monotonic() > began + LOAD_S:
                sys.exit((directory / "worker.log").read_text()[-4000:])
            time.sleep(0.2)
        loaded_s = time.monotonic() - began
        ticket = client.generate(config)
        time.sleep(WARM_UP_S)
        before, at = store.status().total_checked, time.monotonic()
        _say(f"generating for {options.seconds:g} s")
        samples, busy = [], []
        while time.monotonic() < at + options.seconds:
            samples.append(_gpu())
            busy += [each.busy for each in store.status().workers]
            time.sleep(1.0)
        checked, seconds = store.status().total_checked - before, time.monotonic() - at
        at = time.monotonic()
        client.stop()
        stop_s = time.monotonic() - at
        ended = ticket.wait(timeout=60)
        _say("validating what was found")
        found = ended.valid_nonces[-SAMPLE:], ended.valid_distances[-SAMPLE:]
        verdict = client.validate_batch(ProofBatch.of(config, *found), config).wait(timeout=120)
        (seen,) = store.status().workers
    return {
        "device": _nvidia_smi("name")[0],
        "worker": seen.device,
        "profile": ended.profile,
        "batch": f"{config.batch_size} x {config.seq_len}",
        "nonces per second": round(checked / seconds, 1),
        "ms per batch": round(seconds / checked * config.batch_size * 1000, 2),
        "busy, by the worker": round(statistics.median(busy), 4),
        "busy, by nvidia-smi": round(statistics.mean(s[0] for s in samples) / 100, 3),
        "watts": round(statistics.mean(s[1] for s in samples)),
        "SM clock, MHz": round(statistics.mean(s[2] for s in samples)),
        "checked": ended.total_checked,
        "valid": ended.total_valid,
        "failed": ended.total_failed,
        "stop, ms": round(stop_s * 1000, 1),
        "verdict": f"{verdict.n_invalid} of {len(verdict)} invalid, fraud {verdict.fraud_detected}",
        "bitwise equal when validated": sum(
            a == b for a, b in zip(verdict.received_dist, verdict.dist, strict=True)
        ),
        "loaded in, s": round(loaded_s, 1),
    }


@contextmanager
def _worker(url: str, model: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = os.environ | {"POC_REDIS_URL": url, "POC_NAMESPACE": "gpu", "POC_MODEL": str(model)}
    command = [sys.executable, "-m", "worker.cli", "worker"]
    process = spawn(command, env=env, log_path=directory / "worker.log")
    try:
        yield process
    finally:
        status = end(process, timeout=60)
        _say(f"the worker ended with status {status}")


def _gpu() -> tuple[float, float, float]:
    """Utilisation in percent, watts, MHz."""
    return tuple(map(float, _nvidia_smi("utilization.gpu,power.draw,clocks.sm")))  # type: ignore[return-value]


def _nvidia_smi(query: str) -> list[str]:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id", gpu]
    return subprocess.check_output(command, text=True).strip().split(", ")


def _say(text: str) -> None:
    print(f"» {text}", file=sys.stderr)


if __name__ == "__main__":
    script.run(main)
