"""The command line: `python -m faults --help`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import preloaded
from faults.run import Options, Report, Run
from faults.sabotage import SABOTAGE
from faults.saboteur import FAULTS, PHASES

_ABOUT = """\
Run real workers, a real Valkey, the status API and a callback receiver; break them by a schedule
that the seed makes; check after every round that nothing was lost and nothing counted twice.

The same seed gives the same faults and commands in the same order. When they meet what is going
on depends on the machine, so a failure may need several runs to show again.
"""

_END = """\
Exit status: 0 all invariants held, 1 one did not (it is named, with the seed; logs are kept),
2 wrong options. The last line is the report as JSON.

  make faults                            ten minutes of everything
  make faults SEED=7 SECONDS=3600        an hour of it
  python -m faults --seconds 60 --phase always
  python -m faults --seconds 30 --sabotage count-twice      must fail
"""


def main() -> int:
    """Run, print the report, give the exit status."""
    options = _options()
    preloaded.without_models()
    out = Console(soft_wrap=True, highlight=False)
    directory = Path(tempfile.mkdtemp(prefix="poc-faults-"))
    out.print(f"seed {options.seed}, {options.seconds:g} s; logs in {directory}")
    report = Run(options, directory, out.print).run()
    _show(report, out)
    if report.broken:
        broken = report.broken
        out.print(
            f"[bold red]broken[/] with seed {options.seed}: {escape(broken['invariant'])}\n"
            f"{escape(broken['detail'])}\nduring {escape(broken['during'])}; before it:",
            markup=True,
        )
        for line in broken["journal"]:
            out.print(f"  {line[:200]}", markup=False)
        out.print(
            f"The logs are in {directory}: journal.log has all that was done, by the same clock as "
            "the log of each process (NAME.log), whose worker NAME-3 is its third start"
        )
    else:
        shutil.rmtree(directory)
        out.print(f"[bold green]all invariants held[/] with seed {options.seed}", markup=True)
    print(json.dumps(asdict(report)))
    return 1 if report.broken else 0


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m faults",
        description=_ABOUT,
        epilog=_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Options()
    add = parser.add_argument
    add("--seed", type=int, default=default.seed, help="makes the schedule (%(default)s)")
    add("--seconds", type=float, default=default.seconds, help="how long (%(default)s)")
    add("--workers", type=int, default=default.workers, help="besides one that is spared")
    add(
        "--kill-every",
        type=float,
        default=default.kill_every_s,
        help="seconds between two kills of a worker, on average (%(default)s)",
    )
    add(
        "--fault-every",
        type=float,
        default=default.fault_every_s,
        help="seconds between two other faults, on average (%(default)s)",
    )
    add("--phase", choices=PHASES, action="append", help="only this persistence; repeatable")
    add("--sabotage", choices=sorted(SABOTAGE), help="put a defect in: the run must fail")
    add("--no-huge", action="store_true", help="leave messages of 100 MB out")
    add("--list", action="store_true", help="list the faults and end")
    given = parser.parse_args()
    if given.list:
        for fault in FAULTS:
            print(f"{fault.name:40} {', '.join(fault.phases)}")
        sys.exit(0)
    return Options(
        seed=given.seed,
        seconds=given.seconds,
        workers=given.workers,
        kill_every_s=given.kill_every,
        fault_every_s=given.fault_every,
        phases=tuple(given.phase or PHASES),
        sabotage=given.sabotage,
        huge=not given.no_huge,
    )


def _show(report: Report, out: Console) -> None:
    for title, rows in (
        ("injected", report.faults),
        ("checked", report.checks),
        ("answers of the status API", report.api),
        ("tracebacks in the logs", report.tracebacks),
    ):
        table = Table(title=title, title_justify="left")
        table.add_column("what")
        table.add_column("times", justify="right")
        for name, times in rows.items():
            table.add_row(name, f"{times:,}")
        out.print(table)
    losses = Table(title="lost by Redis", title_justify="left")
    for column in ("persistence", "fault", "times", "lost something", "most seconds", "nonces"):
        losses.add_column(column)
    for loss in report.losses:
        losses.add_row(*(str(value) for value in loss.values()))
    out.print(losses)
    for name, each in report.memory.items():
        out.print(
            f"memory of {name}: {each['early']:.0f} MiB early, {each['late']:.0f} MiB late, "
            f"{each['age_s']:.0f} s old"
        )
    out.print(
        f"{report.seconds:.0f} s, {report.acts} acts, {report.rounds} rounds, "
        f"{report.nonces:,} nonces, {report.valid:,} valid, {report.failed:,} failed; "
        f"{report.callbacks:,} callbacks and {report.repeats} repeats; "
        f"slowest end after SIGTERM {report.slowest_sigterm_s:g} s"
    )


if __name__ == "__main__":
    sys.exit(main())
