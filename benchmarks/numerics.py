"""How equal proofs are between engines, shapes and machines, and what follows for validation.

    python benchmarks/numerics.py compute OUT.json --engine vllm --model DIR [--batches 32,1,7,33]
    python benchmarks/numerics.py compute OUT.json --scheme artifact ...
    python benchmarks/numerics.py report REFERENCE.json OTHER.json ...

`compute` needs the engine and its device; it writes the proofs of the same nonces in batches of
each given size. More settings come from the environment (POC_QUANTIZATION, ...). `report` needs
neither: it compares files, the first one being the validator's, and prints the tables of
docs/numerics.md, which says what runs made its figures; benchmarks/gpu.sh makes them.

What a report knows: the proofs of thousands of nonces of one block under seeded random weights.
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
from statistics import NormalDist, fmean, pstdev
from typing import Any

from shared.data import PROBABILITY_MISMATCH
from shared.errors import ConfigError
from shared.odds import at_least, flagged_from
from shared.schemes import DEFAULT, SCHEMES
from shared.schemes.artifact import ArtifactTerms
from shared.settings import load_settings
from worker.tools import script

BLOCK_HASH, PUBLIC_KEY = "numerics", "node"
#: Share of nonces that are valid: sets r_target.
YIELD = 0.05
#: dist_tolerance and submit_margin as published, and as advised.
SAFETY = {"as published": (0.0, 0.0), "tolerance 5e-5": (5e-5, 0.0), "margin 5e-5": (0.0, 5e-5)}
SAFETY |= {"both 5e-5": (5e-5, 5e-5), "tolerance 2e-4": (2e-4, 0.0)}
FRAUD_THRESHOLDS = (1e-7, 1e-4, 0.01)
SAMPLES = (50, 200, 1000)
#: dist_threshold and p_mismatch of the scheme artifact: a node's own, and the network's.
LIMITS = ((0.02, 0.001), (0.2, 0.1), (0.4, 0.1), (0.75, 0.1))


def compute(out: Path, options: argparse.Namespace) -> None:
    """Write the proofs of `options.nonces` nonces, in batches of each size."""
    out.open("ab").close()  # rather than after minutes of computing
    from worker.engines import load_engine

    given = {"engine": options.engine, "model": options.model, "dtype": options.dtype}
    given |= {"tile": options.tile, "device": options.device, "scheme": options.scheme}
    engine = load_engine(load_settings(**given))
    try:
        # The first size covers all nonces, the others enough of them to be compared with it.
        first, *others = options.batches
        counts = {first: options.nonces}
        counts |= {size: min(options.nonces, 32 * size, 1024) for size in others}
        runs = [
            run_of(engine, options.scheme, count, size, options.seq_len)
            for size, count in counts.items()
        ]
        write(out, engine, options.scheme, options.seq_len, runs)
    finally:
        engine.close()
    for run in runs:
        per_second = f"{run['per_second']:.0f}/s"
        print(f"{out.stem}: in batches of {run['batch']}, {per_second}", file=sys.stderr)


def run_of(engine: Any, scheme: str, count: int, size: int, seq_len: int) -> dict[str, Any]:
    """The proofs of the first `count` nonces in batches of `size`, and their rate."""
    from worker.job import Job

    parameters = ArtifactTerms().parameters if scheme == ArtifactTerms.name else {}
    began, pending, proofs = time.perf_counter(), [], []
    for start in range(0, count, size):
        nonces = tuple(range(start, min(start + size, count)))
        job = Job(BLOCK_HASH, PUBLIC_KEY, nonces, seq_len, scheme=scheme, parameters=parameters)
        pending.append(engine.submit(job))
        if len(pending) == 2:
            proofs += pending.pop(0).result()
    for last in pending:
        proofs += last.result()
    return {"batch": size, "proofs": proofs, "per_second": count / (time.perf_counter() - began)}


def write(out: Path, engine: Any, scheme: str, seq_len: int, runs: list[dict[str, Any]]) -> None:
    """What a report reads."""
    profile = dict(engine.info.profile)
    text = json.dumps({"scheme": scheme, "profile": profile, "seq_len": seq_len, "runs": runs})
    out.write_text(text, encoding="utf-8")


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
        """The deltas' standard deviation."""
        return pstdev(self.deltas)

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
            return len(submitted), found, found / max(1, len(submitted))
        level = levels.cdf
        below = level(r_target - margin)
        deltas = self.deltas
        crossed = sum(max(0.0, below - level(r_target + tolerance - d)) for d in deltas)
        return len(submitted), found, crossed / len(deltas) / below


def flagged(mismatch: float, samples: int, threshold: float, allowed: float) -> float:
    """Probability that the binomial test calls a node a fraud whose nonces mismatch so often."""
    return at_least(flagged_from(samples, allowed, threshold), samples, mismatch)


def report(paths: list[Path]) -> None:
    """Compare each file with the first, and each file's batch sizes among themselves."""
    names = [path.stem for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two files are called {twice}, and rows by them: rename one")
    files = {path.stem: _read(path) for path in paths}
    for what in ("scheme", "seq_len"):
        found = sorted({str(file[what]) for file in files.values()})
        if len(found) > 1:
            raise ConfigError(f"files of more than one {what} can't be compared: {found}")
    of_artifacts = files[names[0]]["scheme"] == ArtifactTerms.name
    (_report_artifacts if of_artifacts else _report_distances)(files)


def _read(path: Path) -> dict[str, Any]:
    """What `compute` wrote; raises `ConfigError` for anything else."""
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
        enough = len(file["runs"][0]["proofs"]) > 1 and {"scheme", "seq_len"} <= file.keys()
    except (ValueError, LookupError, TypeError):
        enough = False
    if not enough:
        raise ConfigError(f"{path}: `numerics.py compute` did not write it, with 2 nonces or more")
    return dict(file)


def _report_artifacts(files: dict[str, Any]) -> None:
    """L2 of vectors, and how often it is above each threshold that is in use."""
    names = list(files)
    reference = files[names[0]]["runs"][0]["proofs"]
    limits = "".join(f" above {limit:g} |" for limit, _ in LIMITS)
    print(f"| run | batch | nonces/s | equal bits | L2 on average | largest |{limits}")
    print("|" + " - |" * (6 + len(LIMITS)))
    above = {}
    for name, file in files.items():
        first, *others = file["runs"]
        if name != names[0]:
            above[name] = _l2_row(f"{name} against {names[0]}", first, reference)
        for run in others:
            _l2_row(f"{name} against its own {first['batch']}", run, first["proofs"])
    shifted = reference[1:] + reference[:1]
    above["other nonces"] = _l2_row("other nonces", files[names[0]]["runs"][0], shifted)
    samples = "".join(f" n={n} |" for n in SAMPLES)
    print(f"\n| prover | dist_threshold, p_mismatch | mismatches |{samples}")
    print("|" + " - |" * (3 + len(SAMPLES)))
    figures = {}
    for name, (count, found) in above.items():
        for (limit, allowed), wrong in zip(LIMITS, found, strict=True):
            # What was never seen in so many comes less often than 3 times in them, at 95%.
            share, below = (wrong / count, "") if wrong else (3 / count, "< ")
            fraud = ArtifactTerms().p_value_threshold
            chances = [flagged(share, n, fraud, allowed) for n in SAMPLES]
            figures[f"{name}, {limit:g}"] = {"mismatch": [wrong, count], "flagged": chances}
            shown = "".join(f" {below}{chance:.2g} |" for chance in chances)
            print(f"| {name} | {limit:g}, {allowed:g} | {wrong} of {count} |{shown}")
    print(json.dumps(figures))


def _l2_row(label: str, run: dict[str, Any], other: list[str]) -> tuple[int, list[int]]:
    """Print it; how many were compared, and how many lie above each threshold."""
    terms = ArtifactTerms()
    pairs = list(zip(run["proofs"], other, strict=False))
    apart = [math.inf if None in pair else terms.apart(*pair) for pair in pairs]
    above = [sum(each > limit for each in apart) for limit, _ in LIMITS]
    print(
        f"| {label} | {run['batch']} | {run['per_second']:.0f} | "
        f"{sum(a == b for a, b in pairs)} of {len(pairs)} | "
        f"{fmean(apart):.2g} | {max(apart):.2g} |" + "".join(f" {each} |" for each in above)
    )
    return len(pairs), above


def _report_distances(files: dict[str, Any]) -> None:
    """How far distances are apart, and how often a nonce is below r_target for one side alone."""
    names = list(files)
    reference = files[names[0]]["runs"][0]["proofs"]
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
            print(_row(f"{name} against its own {first['batch']}", run, first["proofs"]))

    print(
        "\n| prover | tolerance, margin | submitted | mismatches | probability |"
        + "".join(f" n={n}, {t:g} |" for n in SAMPLES for t in FRAUD_THRESHOLDS)
        + "\n|"
        + " - |" * (5 + len(SAMPLES) * len(FRAUD_THRESHOLDS))
    )

    def chances_of(mismatch: float) -> list[float]:
        return [
            flagged(mismatch, n, threshold, PROBABILITY_MISMATCH)
            for n in SAMPLES
            for threshold in FRAUD_THRESHOLDS
        ]

    figures = {}
    for name in names[1:]:
        dist = files[name]["runs"][0]["proofs"]
        count = min(len(dist), len(reference))
        pair = Compared(dist[:count], reference[:count])
        for label, (tolerance, margin) in SAFETY.items():
            submitted, found, probability = pair.mismatch(r_target, tolerance, margin)
            chances = chances_of(probability)
            figures[f"{name}, {label}"] = {"mismatch": probability, "flagged": chances}
            print(
                f"| {name} | {label} | {submitted} | {found} | {probability:.2g} |"
                + "".join(f" {chance:.2g} |" for chance in chances)
            )
    # Distances that were never computed: a nonce is below r_target by luck alone.
    chances = chances_of(1 - YIELD)
    print(f"| made up | any | | | {1 - YIELD:.2g} |" + "".join(f" {c:.2g} |" for c in chances))
    print(json.dumps(figures))


def _row(label: str, run: dict[str, Any], other: list[float]) -> str:
    count = min(len(run["proofs"]), len(other))
    pair = Compared(run["proofs"][:count], other[:count])
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
    computing = commands.add_parser("compute", help="write proofs")
    computing.add_argument("out", type=Path)
    computing.add_argument("--engine", default="auto")
    computing.add_argument("--model", required=True)
    computing.add_argument("--scheme", choices=sorted(SCHEMES), default=DEFAULT)
    computing.add_argument("--dtype")
    computing.add_argument("--device")
    computing.add_argument("--tile")
    computing.add_argument("--nonces", type=script.size, default=8192)
    computing.add_argument("--seq-len", type=script.size, default=256)
    computing.add_argument("--batches", type=script.sizes, default=[32])
    reporting = commands.add_parser("report", help="compare what was written")
    reporting.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "compute":
        compute(options.out, options)
    else:
        report(options.files)


if __name__ == "__main__":
    script.run(main)
