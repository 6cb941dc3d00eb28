"""What is said to a supervisor, and what is not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from worker.notify import Supervisor


def test_a_name_in_no_directory_begins_with_an_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the variable has it; for the system it is a zero byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0poc-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@poc-test-{os.getpid()}")
        Supervisor().ready()
        ear.settimeout(10)
        assert ear.recv(100) == b"READY=1"


def test_no_child_inherits_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM starts is not the one to say that a worker is ready."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    Supervisor()
    assert "NOTIFY_SOCKET" not in os.environ


def test_a_supervisor_that_is_gone_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Supervisor().ready()
    assert "systemd can't be told READY=1: " in caplog.text


def test_without_a_supervisor_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    supervisor = Supervisor()
    supervisor.starting()
    supervisor.ready()
    supervisor.alive()
    supervisor.stopping()
    assert caplog.text == ""
