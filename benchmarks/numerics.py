"""How equal distances are between engines, shapes and machines, and what follows for validation.

    python benchmarks/numerics.py compute OUT.json --engine vllm --model DIR [--batches 32,1,7,33]
    python benchmarks/numerics.py report REFERENCE.json OTHER.json ...

`compute` needs the engine and its device; it writes the distances of the same nonces in batches of
each given size. More settings come from the environment (POC_QUANTIZATION, ...). `report` needs
neither: it compares files, the first one being the validator's, and prints the tables of
docs/numerics.md, which says what runs made its figures; benchmarks/gpu.sh makes them.

What a report knows: the distances of thousands of nonces of one block under seeded random weights.
What it does not: trained weights, whose distances spread more from block to block.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from shared.data import PROBABILITY_MISMATCH
from shared.errors import PoCError
from shared.settings import load_settings

BLOCK_HASH, PUBLIC_KEY = "numerics", "node"
#: Share of nonces that are valid: sets r_target.
YIELD = 0.05
#: dist_tolerance and submit_margin as published, and as advised.
SAFETY = {"as published": (0.0, 0.0), "tolerance 5e-5": (5e-5, 0.0), "margin 5e-5": (0.0, 5e-5)}
SAFETY |= {"both 5e-5": (5e-5, 5e-5), "tolerance 2e-4": (2e-4, 0.0)}
FRAUD_THRESHOLDS = (1e-7, 1e-4, 0.01)
SAMPLES = (50, 200, 1000)


def compute(out: Path, options: argparse.Namespace) -> None:
    """Write the distances of `options.nonces` nonces, in batches of each size."""
    from worker.engines import Job, load_engine

    given = {"engine": options.engine, "model": options.model, "dtype": options.dtype}
    given |= {"tile": options.tile, "device": options.device}
    settings = load_settings(**given)
    engine = load_engine(settings)
    runs = []
    try:
        for place, size in enumerate(options.batches):
            # The first size covers all nonces, the others enough of them to be compared with it.
            count = options.nonces if place == 0 else min(options.nonces, 32 * size, 1024)
            began, pending, dist = time.perf_counter(), [], []
            for start in range(0, count, size):
                nonces = tuple(range(start, min(start + size, count)))
                pending.append(engine.submit(Job(BLOCK_HASH, PUBLIC_KEY, nonces, options.seq_len)))
                if len(pending) == 2:
                    dist += pending.pop(0).result()
            for last in pending:
                dist += last.result()
            rate = count / (time.perf_counter() - began)
            runs.append({"batch": size, "dist": dist, "per_second": rate})
            print(f"{out.stem}: {count} nonces in batches of {size}, {rate:.0f}/s", file=sys.stderr)
        profile = dict(engine.info.profile)
    finally:
        engine.close()
    out.write_text(json.dumps({"profile": profile, "seq_len": options.seq_len, "runs": runs}))


@dataclass(frozen=True)
class Compared:
    """A prover's distances against a validator's: the same nonces on both sides."""

    prover: list[float]
    validator: list[float]

    @property
    def deltas(self) -> list[float]:
        """Validator less prover, nonce by nonce."""
        return [v - p for p, v in zip(self.prover, self.validator, strict=True)]

    @property
    def sd(self) -> float:
        """The deltas' root mean square."""
        return math.sqrt(sum(d * d for d in self.deltas) / len(self.deltas))

    @property
    def largest(self) -> float:
        """The largest delta, whatever its sign."""
        return max(map(abs, self.deltas))

    def mismatch(self, r_target: float, tolerance: float, margin: float) -> tuple[int, int, float]:
        """Submitted, of those found invalid, and the smoothed probability of that.

        Few submitted nonces lie where noise matters, so a count alone is coarse. Where the deltas
        are noise, the smoothed figure takes the prover's distances as normal (they are, closely)
        and every measured delta as equally probable at any distance. Where they are as wide as
        the distances themselves, the two have little to do with each other: then the count is it.
        """
        submitted = [
            (p, v)
            for p, v in zip(self.prover, self.validator, strict=True)
            if p < r_target - margin
        ]
        found = sum(v > r_target + tolerance for _, v in submitted)
        levels = NormalDist.from_samples(self.prover)
        if self.sd > 0.2 * levels.stdev:
            return len(submitted), found, found / len(submitted)
        level = levels.cdf
        below = level(r_target - margin)
        deltas = self.deltas
        crossed = sum(max(0.0, below - level(r_target + tolerance - d)) for d in deltas)
        return len(submitted), found, crossed / len(deltas) / below


def flagged(mismatch: float, samples: int, threshold: float) -> float:
    """Probability that the binomial test calls a node a fraud whose nonces mismatch so often."""
    from scipy.stats import binom

    # The test: P(at least k mismatches | PROBABILITY_MISMATCH) < threshold.
    k = int(binom.isf(threshold, samples, PROBABILITY_MISMATCH)) + 1
    while binom.sf(k - 2, samples, PROBABILITY_MISMATCH) < threshold:
        k -= 1
    return float(binom.sf(k - 1, samples, mismatch))


def report(paths: list[Path]) -> None:
    """Compare each file with the first, and each file's batch sizes among themselves."""
    files = {path.stem: json.loads(path.read_text()) for path in paths}
    names = list(files)
    reference = files[names[0]]["runs"][0]["dist"]
    levels = NormalDist.from_samples(reference)
    r_target = sorted(reference)[int(YIELD * len(reference))]
    print(
        f"{names[0]}: {len(reference)} nonces, mean {levels.mean:.4f}, standard deviation "
        f"{levels.stdev:.5f}; r_target {r_target:.5f} takes {YIELD:.0%}\n"
    )

    print("| run | batch | nonces/s | equal bits | sd of the difference | largest |")
    print("|" + " - |" * 6)
    for name, file in files.items():
        first = file["runs"][0]
        if name != names[0]:
            print(_row(f"{name} against {names[0]}", first, reference))
        for run in file["runs"][1:]:
            print(_row(f"{name} against its own {first['batch']}", run, first["dist"]))

    print(
        "\n| prover | tolerance, margin | submitted | mismatches | probability |"
        + "".join(f" n={n}, {t:g} |" for n in SAMPLES for t in FRAUD_THRESHOLDS)
        + "\n|"
        + " - |" * (5 + len(SAMPLES) * len(FRAUD_THRESHOLDS))
    )
    figures = {}
    for name in names[1:]:
        dist = files[name]["runs"][0]["dist"]
        count = min(len(dist), len(reference))
        pair = Compared(dist[:count], reference[:count])
        for label, (tolerance, margin) in SAFETY.items():
            submitted, found, probability = pair.mismatch(r_target, tolerance, margin)
            chances = [flagged(probability, n, t) for n in SAMPLES for t in FRAUD_THRESHOLDS]
            figures[f"{name}, {label}"] = {"mismatch": probability, "flagged": chances}
            print(
                f"| {name} | {label} | {submitted} | {found} | {probability:.2g} |"
                + "".join(f" {chance:.2g} |" for chance in chances)
            )
    # Distances that were never computed: a nonce is below r_target by luck alone.
    chances = [flagged(1 - YIELD, n, t) for n in SAMPLES for t in FRAUD_THRESHOLDS]
    print(f"| made up | any | | | {1 - YIELD:.2g} |" + "".join(f" {c:.2g} |" for c in chances))
    print(json.dumps(figures))


def _row(label: str, run: dict[str, Any], other: list[float]) -> str:
    count = min(len(run["dist"]), len(other))
    pair = Compared(run["dist"][:count], other[:count])
    equal = sum(a == b for a, b in zip(pair.prover, pair.validator, strict=True)) / count
    return (
        f"| {label} | {run['batch']} | {run['per_second']:.0f} | {equal:.1%} of {count} | "
        f"{pair.sd:.2g} | {pair.largest:.2g} |"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    computing = commands.add_parser("compute", help="write distances")
    computing.add_argument("out", type=Path)
    computing.add_argument("--engine", default="auto")
    computing.add_argument("--model", required=True)
    computing.add_argument("--dtype")
    computing.add_argument("--device")
    computing.add_argument("--tile")
    computing.add_argument("--nonces", type=int, default=8192)
    computing.add_argument("--seq-len", type=int, default=256)
    computing.add_argument(
        "--batches", type=lambda text: [int(size) for size in text.split(",")], default=[32]
    )
    reporting = commands.add_parser("report", help="compare what was written")
    reporting.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "compute":
        compute(options.out, options)
    else:
        report(options.files)


if __name__ == "__main__":
    try:
        main()
    except (PoCError, OSError) as error:  # the latter of a file that is not there, say
        sys.exit(f"numerics.py: {error}")
