"""The time line of one batch in vLLM's process: what the device does, and when the host said so.

    python benchmarks/timeline.py --model DIR

Runs batches two deep, as the worker does, with CUDA events around each stage. Device times are
those of the device's own clock between the stages; host times are what the launch took. Where the
host is through with a batch long before the device is, the device never waits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from shared.settings import load_settings
from worker.engines import Job
from worker.engines.vllm.engine import VllmEngine
from worker.engines.vllm.options import extended_by
from worker.tools import script


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=script.size, help="a whole tile unless given")
    parser.add_argument("--seq-len", type=script.size, default=256)
    options = parser.parse_args()
    # vLLM's process imports it by name, from beside this script.
    with extended_by("timeline_extension.TimelineExtension"):
        engine = VllmEngine(load_settings(engine="vllm", model=options.model))
    nonces = range(options.batch_size or engine.info.tile)
    job = Job("timeline", "node", tuple(nonces), options.seq_len)
    try:
        times = engine.call("poc_timeline", asdict(job))
    finally:
        engine.close()
    print(f"{'stage':26} {'device ms':>10} {'host ms':>10}")
    for name, (device, host) in times.items():
        print(f"{name:26} {device:10.3f} {host:10.3f}")
    print(json.dumps(times))


if __name__ == "__main__":
    script.run(main)
