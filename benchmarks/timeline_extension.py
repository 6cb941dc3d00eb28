"""What timeline.py adds to vLLM's process, which alone imports this: it needs vLLM."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

from worker import kernels
from worker.engines.vllm.extension import PoCWorkerExtension
from worker.engines.vllm.recording import Recorder

#: Batches before the measurement, and in it.
WARM_UP, BATCHES = 10, 50
#: What is clocked, in the order of a batch: who has it, under which name.
STAGES = {
    "inputs": (kernels, "generate_inputs"),
    "permutations": (kernels, "generate_permutations"),
    "forward and logits": (Recorder, "__call__"),
    "distances": (kernels, "compute_distances"),
}


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

        plain = {name: getattr(owner, attribute) for name, (owner, attribute) in STAGES.items()}
        whole: list[tuple[float, float]] = []
        try:
            for name, (owner, attribute) in STAGES.items():
                setattr(owner, attribute, clocked(name, plain[name]))
            self.poc_launch(0, job)
            for ticket in range(1, WARM_UP + BATCHES):
                began = time.perf_counter()
                self.poc_launch(ticket, job)
                host = time.perf_counter() - began
                _, seconds = self.poc_collect(ticket - 1)
                whole.append((seconds, host))
            self.poc_collect(ticket)
        finally:
            for name, (owner, attribute) in STAGES.items():
                setattr(owner, attribute, plain[name])
        times = defaultdict(list)
        for name, host, start, stop in marks[len(marks) // (WARM_UP + BATCHES) * WARM_UP :]:
            times[name].append((start.elapsed_time(stop), host * 1000))
        times["whole batch"] = [(s * 1000, h * 1000) for s, h in whole[WARM_UP:]]
        return {
            name: (statistics.median(d for d, _ in each), statistics.median(h for _, h in each))
            for name, each in times.items()
        }
