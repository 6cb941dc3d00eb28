"""The time line of one batch in vLLM's process: what the device does, and when the host said so.

    python benchmarks/timeline.py --model DIR

Runs batches two deep, as the worker does, with CUDA events around each stage. Device times are
those of the device's own clock between the stages; host times are what the launch took. Where the
host is through with a batch long before the device is, the device never waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Any

from shared.settings import load_settings
from worker import gpu_random
from worker.engines import Job, vllm_engine, vllm_extension
from worker.engines.vllm_extension import PoCWorkerExtension

#: Batches before the measurement, and in it.
WARM_UP, BATCHES = 10, 50


class TimelineExtension(PoCWorkerExtension):
    """The extension, with a clock in each stage."""

    def poc_timeline(self, job: dict[str, Any]) -> dict[str, tuple[float, float]]:
        """Median device and host milliseconds of each stage of `job`, and of the whole."""
        import torch

        marks: list[tuple[str, float, Any, Any]] = []

        def clocked(name: str, function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                began = time.perf_counter()
                result = function(*args, **kwargs)
                host = time.perf_counter() - began
                stop.record()
                marks.append((name, host, start, stop))
                return result

            return call

        stages = {
            "inputs": (gpu_random, "generate_inputs"),
            "forward and logits": (vllm_extension._Recording, "__call__"),
            "permutations": (gpu_random, "generate_permutations"),
            "distances": (gpu_random, "compute_distances"),
        }
        plain = {name: getattr(module, attribute) for name, (module, attribute) in stages.items()}
        whole: list[tuple[float, float]] = []
        try:
            for name, (module, attribute) in stages.items():
                setattr(module, attribute, clocked(name, plain[name]))
            self.poc_launch(0, job)
            for ticket in range(1, WARM_UP + BATCHES):
                began = time.perf_counter()
                self.poc_launch(ticket, job)
                host = time.perf_counter() - began
                _, seconds = self.poc_collect(ticket - 1)
                whole.append((seconds, host))
            self.poc_collect(ticket)
        finally:
            for name, (module, attribute) in stages.items():
                setattr(module, attribute, plain[name])
        times = defaultdict(list)
        for name, host, start, stop in marks[len(marks) // (WARM_UP + BATCHES) * WARM_UP :]:
            times[name].append((start.elapsed_time(stop), host * 1000))
        times["whole batch"] = [(s * 1000, h * 1000) for s, h in whole[WARM_UP:]]
        return {
            name: (statistics.median(d for d, _ in each), statistics.median(h for _, h in each))
            for name, each in times.items()
        }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    options = parser.parse_args()
    vllm_engine._EXTENSION = f"{TimelineExtension.__module__}.{TimelineExtension.__qualname__}"
    if TimelineExtension.__module__ == "__main__":  # its process imports it by name
        vllm_engine._EXTENSION = f"timeline.{TimelineExtension.__qualname__}"
    engine = vllm_engine.VllmEngine(load_settings(engine="vllm", model=options.model))
    job = Job("timeline", "node", tuple(range(options.batch_size)), options.seq_len)
    try:
        owner = engine._owner
        call = owner._call("poc_timeline", asdict(job))
        (times,) = asyncio.run_coroutine_threadsafe(call, owner._loop).result()
    finally:
        engine.close()
    print(f"{'stage':20} {'device ms':>10} {'host ms':>10}")
    for name, (device, host) in times.items():
        print(f"{name:20} {device:10.3f} {host:10.3f}")
    print(json.dumps(times))


if __name__ == "__main__":
    main()
