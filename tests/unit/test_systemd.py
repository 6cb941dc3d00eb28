"""The units of deploy/systemd, as systemd itself reads them; none is started."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from shared.settings import HIDDEN, Settings, load_settings
from support import ROOT
from worker.cli.app import app
from worker.notify import PATIENCE_S, WORD_S
from worker.queue.app import QUARANTINED, START_FAILED

UNITS = sorted((ROOT / "deploy/systemd").iterdir())
SERVICES = [each for each in UNITS if each.suffix == ".service"]
WORKER = ROOT / "deploy/systemd/poc-worker@.service"

services = pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)


def values(path: Path, key: str) -> list[str]:
    """What a unit gives a key, in as many lines as it does."""
    return re.findall(rf"^{key}=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)


def seconds(path: Path, key: str) -> int:
    """A time, which our units give in whole minutes."""
    (value,) = values(path, key)
    return 60 * int(value.removesuffix("min"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_takes_them_as_they_are(tmp_path: Path) -> None:
    """It has nothing to say about any of them, and would about a key that it does not know."""
    for path in UNITS:
        text = path.read_text(encoding="utf-8")
        # It looks whether the programs are there.
        text = text.replace("/opt/poc/bin/poc", sys.executable)
        text = text.replace("-+/usr/bin/nvidia-modprobe", f"-+{sys.executable}")
        (tmp_path / path.name.replace("@.", "@0.")).write_text(text, encoding="utf-8")

    def verify() -> str:
        names = sorted(str(each) for each in tmp_path.iterdir())
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *names],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    assert verify() == ""
    (tmp_path / "wrong.service").write_text("[Service]\nExecStart=/bin/true\nKillMod=mixed\n")
    assert "Unknown key 'KillMod'" in verify()


@services
def test_each_runs_a_command_that_there_is(path: Path) -> None:
    (line,) = values(path, "ExecStart")
    program, *words = line.split()
    assert program == "/opt/poc/bin/poc"
    assert words[0] in get_command(app).commands  # type: ignore[attr-defined]


@services
def test_secrets_are_credentials(path: Path) -> None:
    """Also those that are switched on by taking out a #: a file each, which only it can read."""
    text = path.read_text(encoding="utf-8")
    loaded = re.findall(r"^#?LoadCredential=(\w+):/etc/poc/(\w+)$", text, re.MULTILINE)
    used = re.findall(r"^#?Environment=POC_(\w+)_FILE=%d/(\w+)$", text, re.MULTILINE)
    assert "redis_url" in values(path, "LoadCredential")[0]
    assert loaded == [(name, name) for name, _ in loaded]
    assert [(name.lower(), file) for name, file in used] == loaded
    assert {name for name, _ in loaded} <= set(HIDDEN)


@services
def test_settings_are_ones_that_there_are(path: Path) -> None:
    given = re.findall(r"\bPOC_(\w+)=", path.read_text(encoding="utf-8"))
    assert {name.removesuffix("_FILE").lower() for name in given} <= Settings.model_fields.keys()


@services
def test_one_that_could_not_start_is_left_alone(path: Path) -> None:
    """And a device with wrong numbers; all else is started again, for ever."""
    final = {START_FAILED, QUARANTINED} if path == WORKER else {START_FAILED}
    assert values(path, "RestartPreventExitStatus") == [" ".join(map(str, sorted(final)))]
    assert values(path, "Restart") == ["on-failure"]
    assert values(path, "StartLimitIntervalSec") == ["0"]


def test_a_worker_has_the_time_that_it_may_take() -> None:
    """Systemd waits longer than the worker's own deadlines, and longer than from word to word."""
    assert values(WORKER, "Type") == ["notify"]
    assert values(WORKER, "KillMode") == ["mixed"]  # vLLM's processes are the worker's to end
    assert seconds(WORKER, "TimeoutStopSec") > load_settings({}).batch_deadline
    assert seconds(WORKER, "WatchdogSec") > 10 * WORD_S
    assert 10 * WORD_S < PATIENCE_S <= seconds(WORKER, "TimeoutStartSec")
